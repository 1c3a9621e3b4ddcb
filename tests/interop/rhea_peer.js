// A foreign peer made of rhea and ws, for the interop tests.
//
//   node rhea_peer.js serve                          a server that keeps what it gets in arrays, one per address
//   node rhea_peer.js send URL ADDRESS COUNT         sends COUNT messages, prints the outcomes and ends
//   node rhea_peer.js receive URL ADDRESS COUNT      receives COUNT messages, prints them as JSON lines and ends
//   node rhea_peer.js settle URL ADDRESS OUTCOMES    receives one message for each outcome and settles it so
//   node rhea_peer.js request URL ADDRESS COUNT      sends requests with a dynamic reply-to, prints the replies' bodies
//
// PEER_USER and PEER_PASSWORD are the credentials: demanded of a client that uses PLAIN, and used by ours if set.
'use strict';

const http = require('http');
const rhea = require('rhea');
const { WebSocket, WebSocketServer } = require('ws');

const { PEER_USER: user, PEER_PASSWORD: password } = process.env;

function serve() {
  const container = rhea.create_container({ id: 'rhea-peer' });
  container.sasl_server_mechanisms.enable_anonymous();
  container.sasl_server_mechanisms.enable_plain((name, secret) => name === user && secret === password);

  // Messages pass through as the bytes they came in: rhea would give numbers other AMQP types when encoding them again.
  const decode = rhea.message.decode;
  rhea.message.decode = (bytes) => bytes;

  const queues = new Map();
  function queue(address) {
    if (!queues.has(address)) queues.set(address, { messages: [], senders: new Set() });
    return queues.get(address);
  }
  function serveSender(sender, queue) {
    // rhea takes a delivery off the credit only when it writes it, so what is promised by now is counted here.
    while (queue.messages.length && sender.credit + sender.delivery_count > sender.promised) {
      const message = queue.messages.shift();
      sender.promised++;
      const delivery = sender.send(message.bytes, undefined, 0);
      if (!delivery.settled) sender.unsettled.set(delivery, message);
    }
  }
  let arrivals = 0;
  function put(queue, message) {
    queue.messages.push(message);
    // What is given back goes to the place it had.
    if (message.number < arrivals) queue.messages.sort((one, other) => one.number - other.number);
    for (const sender of queue.senders) serveSender(sender, queue);
  }
  function counted(bytes) {
    const message = decode(bytes);
    message.delivery_count = (message.delivery_count || 0) + 1;
    return rhea.message.encode(message);
  }

  let dynamic = 0;
  container.on('sender_open', ({ sender }) => {
    const source = sender.remote.attach.source;
    const address = source.dynamic ? `dynamic-${++dynamic}` : source.address;
    sender.set_source(source.dynamic ? { address, dynamic: true } : source);
    sender.set_target(sender.remote.attach.target);
    sender.queue = queue(address);
    sender.unsettled = new Map();
    sender.promised = 0;
    sender.queue.senders.add(sender);
  });
  container.on('receiver_open', ({ receiver }) => {
    receiver.set_target(receiver.remote.attach.target);
    receiver.set_source(receiver.remote.attach.source);
  });
  container.on('sendable', ({ sender }) => serveSender(sender, sender.queue));
  container.on('sender_draining', ({ sender }) => {
    serveSender(sender, sender.queue);
    sender.promised = sender.credit + sender.delivery_count;
    sender.set_drained(true);
  });
  container.on('message', ({ receiver, message, delivery }) => {
    const address = receiver.remote.attach.target.address || decode(message).to;
    put(queue(address), { bytes: message, number: ++arrivals });
  });
  container.on('settled', ({ sender, delivery }) => {
    const message = sender.unsettled.get(delivery);
    if (!sender.unsettled.delete(delivery)) return; // given back already, when the link ended
    const outcome = delivery.remote_state;
    const name = outcome && outcome.constructor.composite_type;
    if (name === 'modified' && outcome.delivery_failed) message.bytes = counted(message.bytes);
    if (name === 'modified' || name === 'released') put(sender.queue, message);
  });
  function gone(sender) {
    sender.queue.senders.delete(sender);
    for (const [delivery, message] of sender.unsettled) {
      if (delivery.remote_settled) continue; // its event is still to come
      sender.unsettled.delete(delivery);
      put(sender.queue, message);
    }
  }
  container.on('sender_close', ({ sender }) => gone(sender));
  const lost = ({ connection }) => {
    for (const queue of queues.values()) {
      for (const sender of queue.senders) if (sender.connection === connection) gone(sender);
    }
  };
  container.on('connection_close', lost);
  container.on('disconnected', lost);
  for (const event of ['connection_error', 'session_error', 'sender_error', 'receiver_error', 'protocol_error']) {
    container.on(event, (context) => console.error(event, context.error || context));
  }
  container.on('error', (error) => console.error('error', error));

  const server = http.createServer();
  const sockets = new WebSocketServer({
    server,
    perMessageDeflate: false,
    handleProtocols: (offered) => (offered.has('amqp') ? 'amqp' : false),
  });
  sockets.on('connection', (socket) => container.websocket_accept(socket, { max_frame_size: 16384, idle_time_out: 5000 }));
  server.listen(0, '127.0.0.1', () => console.log(`listening on ${server.address().port}`));
}

function connect(url) {
  const container = rhea.create_container({ id: `rhea-client-${process.pid}` });
  const details = rhea.websocket_connect(WebSocket)(url, ['amqp'], { perMessageDeflate: false });
  const options = { connection_details: details, reconnect: false, idle_time_out: 20000 };
  if (user) Object.assign(options, { username: user, password });
  const connection = container.connect(options);
  const fail = (context) => {
    console.error('failed:', (context.error || context.connection.error || 'no reason given').toString());
    process.exit(1);
  };
  for (const event of ['connection_error', 'session_error', 'sender_error', 'receiver_error', 'rejected_open']) {
    container.on(event, fail);
  }
  container.on('disconnected', fail);
  const finish = (summary) => {
    console.log(JSON.stringify(summary));
    container.removeListener('disconnected', fail);
    container.on('connection_close', () => process.exit(0));
    connection.close();
  };
  return { container, connection, finish };
}

function send(url, address, count) {
  const { container, connection, finish } = connect(url);
  const outcomes = {};
  let sent = 0, settled = 0;
  const sender = connection.open_sender({ target: { address } });
  container.on('sendable', () => {
    while (sent < count && sender.sendable()) {
      const number = sent++;
      sender.send({
        message_id: `id-${number}`,
        subject: 'from rhea',
        content_type: 'application/json',
        creation_time: 1700000000000 + number,
        application_properties: { number, even: number % 2 === 0, text: 'grüße', half: number + 0.5 },
        message_annotations: { 'x-opt-number': rhea.types.wrap_long(number) },
        body: number % 2
          ? rhea.message.data_section(Buffer.from(JSON.stringify({ number })))
          : { number, list: [1, 'two', null, true] },
      });
    }
  });
  for (const outcome of ['accepted', 'rejected', 'released', 'modified']) {
    container.on(outcome, () => {
      outcomes[outcome] = (outcomes[outcome] || 0) + 1;
      if (++settled === count) finish({ sent, outcomes });
    });
  }
}

function plain(body) {
  if (body && body.typecode) return { section: body.typecode, content: plain(body.content) };
  if (Buffer.isBuffer(body)) return body.toString('utf8');
  return body;
}

function receive(url, address, count) {
  const { container, connection, finish } = connect(url);
  let received = 0;
  connection.open_receiver({ source: { address }, credit_window: 0 });
  container.on('receiver_open', ({ receiver }) => receiver.add_credit(count));
  container.on('message', ({ message }) => {
    const { body, ...sections } = message;
    console.log(JSON.stringify({ ...sections, body: plain(body) }));
    if (++received === count) setImmediate(() => finish({ received }));
  });
}

function settle(url, address, names) {
  const { container, connection, finish } = connect(url);
  const outcomes = names.split(',');
  const receiver = connection.open_receiver({ source: { address }, credit_window: 0, autoaccept: false });
  const counts = [];
  container.on('receiver_open', () => receiver.add_credit(1));
  container.on('message', ({ message, delivery }) => {
    counts.push(message.delivery_count || 0);
    const outcome = outcomes.shift();
    if (outcome === 'accept') delivery.accept();
    else if (outcome === 'reject') delivery.reject({ condition: 'amqp:not-allowed', description: 'by rhea' });
    else if (outcome === 'release') delivery.release();
    else delivery.modified({ delivery_failed: true });
    if (outcomes.length) receiver.add_credit(1);
    else setImmediate(() => finish({ delivery_counts: counts }));
  });
}

function request(url, address, count) {
  const { container, connection, finish } = connect(url);
  const replies = [];
  const sender = connection.open_sender({ target: { address } });
  const receiver = connection.open_receiver({ source: { dynamic: true } });
  let asked = 0;
  const ask = () => sender.send({
    message_id: `request-${asked}`,
    reply_to: receiver.source.address,
    body: `question ${asked++}`,
  });
  container.on('receiver_open', ask);
  container.on('message', ({ message }) => {
    replies.push([message.correlation_id, plain(message.body)]);
    if (replies.length === count) finish({ replies });
    else ask();
  });
}

const [command, url, address, rest] = process.argv.slice(2);
if (command === 'serve') serve();
else if (command === 'send') send(url, address, Number(rest));
else if (command === 'receive') receive(url, address, Number(rest));
else if (command === 'settle') settle(url, address, rest);
else if (command === 'request') request(url, address, Number(rest));
else process.exit(2);
