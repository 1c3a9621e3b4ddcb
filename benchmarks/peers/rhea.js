// rhea, with ws: sending on credit as 'sendable' tells, receiving with a credit window and automatic accepts.
'use strict';

const fs = require('fs');
const rhea = require('rhea');
const WebSocket = require('ws');

const job = JSON.parse(process.argv[2]);
const body = job.body_file ? fs.readFileSync(job.body_file) : Buffer.alloc(100, 'x');
const TRACE = '00-4bf92f3577b34da6a3ce929d0e0e4736';
const websocket = rhea.websocket_connect(WebSocket);

function connect(container) {
  return container.connect({ connection_details: websocket(job.url, ['amqp'], {}), reconnect: false });
}

function make(number) {
  const data = rhea.message.data_section(body);
  if (!job.rich) return { body: data };
  return {
    body: data,
    message_id: `order-${String(number).padStart(12, '0')}`,
    content_type: 'application/json',
    application_properties: { tenant: 'acme-eu', attempt: number & 127, trace: TRACE },
  };
}

function read(message) {
  const right = message.body.content.length === body.length;
  return job.rich ? right && message.message_id && message.application_properties.tenant === 'acme-eu' : right;
}

let mark;
function begin() {
  mark = { cpu: process.cpuUsage(), wall: process.hrtime.bigint() };
}
function report(more) {
  const cpu = process.cpuUsage(mark.cpu);
  const wall = Number(process.hrtime.bigint() - mark.wall) / 1e9;
  let peak = process.resourceUsage().maxRSS;
  try {
    peak = Number(/VmHWM:\s+(\d+)/.exec(fs.readFileSync('/proc/self/status', 'latin1'))[1]);
  } catch {
    // not Linux
  }
  const figures = { messages: job.messages, cpu: (cpu.user + cpu.system) / 1e6, wall, peak_memory: peak * 1024 };
  console.log(JSON.stringify({ ...figures, ...more }));
}
function percentiles(seconds) {
  seconds.sort((one, other) => one - other);
  return { p50: seconds[Math.floor(seconds.length / 2)], p99: seconds[Math.floor((seconds.length * 99) / 100)] };
}
function fail(what) {
  console.error(what);
  process.exit(1);
}
function guard(container) {
  for (const event of ['rejected', 'released', 'modified', 'disconnected', 'connection_error', 'sender_error', 'receiver_error'])
    container.on(event, (context) => fail(`${event}: ${context.error || (context.connection && context.connection.error) || ''}`));
}

// Sends `count` on a sender with a window, and calls `done` when all are accepted.
function pipeline(sender, count, window, done) {
  let sent = 0;
  let accepted = 0;
  sender.go = () => {
    while (sent < count && sent - accepted < window && sender.sendable()) sender.send(make(sent++));
  };
  sender.on_accepted = () => {
    accepted++;
    if (accepted === count) done();
    else sender.go();
  };
  if (count) sender.go();
  else done();
}
function senders(container) {
  container.on('sendable', ({ sender }) => sender.go && sender.go());
  container.on('accepted', ({ sender }) => sender.on_accepted());
}

const works = {
  send(container, connection) {
    senders(container);
    const sender = connection.open_sender(job.address);
    container.once('sendable', () =>
      pipeline(sender, job.warm_up, job.window, () => {
        begin();
        pipeline(sender, job.messages, job.window, () => {
          report();
          process.exit(0);
        });
      }),
    );
  },

  alone(container, connection) {
    senders(container);
    const sender = connection.open_sender(job.address);
    const seconds = [];
    let number = -job.warm_up;
    let started;
    const next = () => {
      if (number === 0) begin();
      started = process.hrtime.bigint();
      sender.send(make(0));
    };
    sender.on_accepted = () => {
      if (number++ >= 0) seconds.push(Number(process.hrtime.bigint() - started) / 1e9);
      if (number < job.messages) next();
      else {
        report(percentiles(seconds));
        process.exit(0);
      }
    };
    container.once('sendable', next);
  },

  receive(container, connection) {
    let count = 0;
    if (!job.warm_up) begin();
    container.on('message', ({ message }) => {
      if (!read(message)) fail('not what was sent');
      count++;
      if (count === job.warm_up) begin();
      if (count === job.warm_up + job.messages) {
        report();
        setTimeout(() => process.exit(0), 200); // the last accepts go out
      }
    });
    connection.open_receiver({ source: job.address, credit_window: job.window });
  },

  connections(container, first) {
    senders(container);
    const all = [first];
    while (all.length < job.connections) all.push(connect(container));
    const opened = all.map((connection, index) => connection.open_sender(`${job.address}-${index}`));
    let ready = 0;
    const everyone = (count, done) => {
      let left = opened.length;
      for (const sender of opened) pipeline(sender, count / opened.length, job.window, () => --left || done());
    };
    const start = () =>
      everyone(job.warm_up, () => {
        begin();
        everyone(job.messages, () => {
          report();
          process.exit(0);
        });
      });
    const seen = new Set();
    container.on('sendable', ({ sender }) => {
      if (!seen.has(sender)) {
        seen.add(sender);
        if (++ready === opened.length) start();
      }
    });
  },

  connect(container, unused) {
    const seconds = [];
    let number = -job.warm_up;
    const next = () => {
      if (number === 0) begin();
      const own = rhea.create_container();
      const started = process.hrtime.bigint();
      const connection = connect(own);
      const sender = connection.open_sender(job.address);
      own.once('sendable', () => sender.send(make(0)));
      own.on('accepted', () => {
        if (number >= 0) seconds.push(Number(process.hrtime.bigint() - started) / 1e9);
        connection.close();
      });
      own.on('connection_close', () => {
        if (++number < job.messages) next();
        else {
          report(percentiles(seconds));
          process.exit(0);
        }
      });
    };
    next();
  },
};

const container = rhea.create_container();
guard(container);
works[job.work](container, job.work === 'connect' ? null : connect(container));
