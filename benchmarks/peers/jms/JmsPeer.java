// Qpid JMS over amqpws: sending with a CompletionListener, receiving with the default prefetch of 1000, acknowledging
// each message (AUTO_ACKNOWLEDGE). JMS gives messages an id and a content type of its own.

import jakarta.jms.BytesMessage;
import jakarta.jms.CompletionListener;
import jakarta.jms.Connection;
import jakarta.jms.DeliveryMode;
import jakarta.jms.Message;
import jakarta.jms.MessageConsumer;
import jakarta.jms.MessageProducer;
import jakarta.jms.Session;
import jakarta.jms.TextMessage;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.concurrent.Semaphore;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.apache.qpid.jms.JmsConnectionFactory;

public final class JmsPeer {
    private static final String TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736";
    private static String job, address;
    private static byte[] body;
    private static boolean rich;
    private static int messages, warmUp, window;

    public static void main(String[] arguments) throws Exception {
        job = arguments[0];
        address = text("address");
        body = Files.readAllBytes(Path.of(text("body_file")));
        rich = text("rich").equals("true");
        messages = Integer.parseInt(text("messages"));
        warmUp = Integer.parseInt(text("warm_up"));
        window = Integer.parseInt(text("window"));
        switch (text("work")) {
            case "send" -> send();
            case "alone" -> alone();
            case "receive" -> receive();
            case "connect" -> connectAgain();
            default -> throw new IllegalArgumentException(job);
        }
        System.exit(0);
    }

    private static String text(String field) {
        Matcher matcher = Pattern.compile("\"" + field + "\": \"?([^\",}]*)").matcher(job);
        if (!matcher.find()) throw new IllegalArgumentException(field);
        return matcher.group(1);
    }

    private static Connection connect() throws Exception {
        String url = text("url").replace("ws://", "amqpws://") + "?jms.prefetchPolicy.all=" + window
            + "&amqp.traceFrames=false&amqp.maxFrameSize=65536";
        Connection connection = new JmsConnectionFactory(url).createConnection();
        connection.start();
        return connection;
    }

    private static MessageProducer producer(Session session) throws Exception {
        MessageProducer producer = session.createProducer(session.createQueue(address));
        producer.setDeliveryMode(DeliveryMode.NON_PERSISTENT);
        return producer;
    }

    private static Message make(Session session, int number) throws Exception {
        BytesMessage message = session.createBytesMessage();
        message.writeBytes(body);
        if (rich) {
            message.setStringProperty("tenant", "acme-eu");
            message.setIntProperty("attempt", number & 127);
            message.setStringProperty("trace", TRACE);
        }
        return message;
    }

    private static void read(Message message) throws Exception {
        long size;
        if (message instanceof BytesMessage bytes) {
            byte[] copy = new byte[(int) bytes.getBodyLength()];
            bytes.readBytes(copy);
            size = copy.length;
        } else {
            size = ((TextMessage) message).getText().length();
        }
        boolean right = size == body.length;
        if (rich) right &= message.getJMSMessageID() != null && "acme-eu".equals(message.getStringProperty("tenant"));
        if (!right) throw new IllegalStateException("not what was sent: " + message);
    }

    private static void pipeline(Session session, MessageProducer producer, int count) throws Exception {
        Semaphore room = new Semaphore(window);
        CompletionListener listener = new CompletionListener() {
            @Override
            public void onCompletion(Message message) {
                room.release();
            }

            @Override
            public void onException(Message message, Exception exception) {
                exception.printStackTrace();
                System.exit(1);
            }
        };
        for (int number = 0; number < count; number++) {
            room.acquire();
            producer.send(make(session, number), listener);
        }
        room.acquire(window);
    }

    private static void send() throws Exception {
        try (Connection connection = connect()) {
            Session session = connection.createSession(Session.AUTO_ACKNOWLEDGE);
            MessageProducer producer = producer(session);
            pipeline(session, producer, warmUp);
            begin();
            pipeline(session, producer, messages);
            report(null);
        }
    }

    private static void alone() throws Exception {
        double[] seconds = new double[messages];
        // By default the client does not wait for the outcome of a message that is not persistent.
        try (Connection connection = new JmsConnectionFactory(
                text("url").replace("ws://", "amqpws://") + "?jms.forceSyncSend=true").createConnection()) {
            Session session = connection.createSession(Session.AUTO_ACKNOWLEDGE);
            MessageProducer producer = producer(session);
            for (int number = -warmUp; number < messages; number++) {
                if (number == 0) begin();
                long started = System.nanoTime();
                producer.send(make(session, 0));
                if (number >= 0) seconds[number] = (System.nanoTime() - started) / 1e9;
            }
            report(seconds);
        }
    }

    private static void receive() throws Exception {
        try (Connection connection = connect()) {
            Session session = connection.createSession(Session.AUTO_ACKNOWLEDGE);
            MessageConsumer consumer = session.createConsumer(session.createQueue(address));
            for (int number = -warmUp; number < messages; number++) {
                if (number == 0) begin();
                read(consumer.receive());
            }
            report(null);
        }
    }

    private static void connectAgain() throws Exception {
        double[] seconds = new double[messages];
        for (int number = -warmUp; number < messages; number++) {
            if (number == 0) begin();
            long started = System.nanoTime();
            try (Connection connection = new JmsConnectionFactory(
                    text("url").replace("ws://", "amqpws://") + "?jms.forceSyncSend=true").createConnection()) {
                Session session = connection.createSession(Session.AUTO_ACKNOWLEDGE);
                producer(session).send(make(session, 0));
                if (number >= 0) seconds[number] = (System.nanoTime() - started) / 1e9;
            }
        }
        report(seconds);
    }

    private static long startCpu, startWall;

    private static long cpu() {
        return ((com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean())
            .getProcessCpuTime();
    }

    private static void begin() {
        startCpu = cpu();
        startWall = System.nanoTime();
    }

    private static void report(double[] seconds) throws Exception {
        String line = String.format(java.util.Locale.ROOT, "\"messages\": %d, \"cpu\": %f, \"wall\": %f",
            messages, (cpu() - startCpu) / 1e9, (System.nanoTime() - startWall) / 1e9);
        if (seconds != null) {
            Arrays.sort(seconds);
            line += String.format(java.util.Locale.ROOT, ", \"p50\": %.9f, \"p99\": %.9f",
                seconds[seconds.length / 2], seconds[seconds.length * 99 / 100]);
        }
        Path status = Path.of("/proc/self/status");
        if (Files.exists(status)) {
            Matcher peak = Pattern.compile("VmHWM:\\s+(\\d+)").matcher(Files.readString(status));
            if (peak.find()) line += ", \"peak_memory\": " + Long.parseLong(peak.group(1)) * 1024;
        }
        System.out.println("{" + line + "}");
        System.out.flush();
    }
}
