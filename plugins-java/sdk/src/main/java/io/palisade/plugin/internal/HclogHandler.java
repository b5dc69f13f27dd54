package io.palisade.plugin.internal;

import java.io.PrintStream;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.charset.StandardCharsets;
import java.time.ZoneOffset;
import java.time.ZonedDateTime;
import java.util.logging.Handler;
import java.util.logging.Level;
import java.util.logging.LogManager;
import java.util.logging.LogRecord;
import java.util.logging.Logger;
import java.util.logging.SimpleFormatter;

/** Writes log records as the JSON lines of HashiCorp's hclog, which plugin hosts read with their level. */
final class HclogHandler extends Handler {

  private final PrintStream out;
  private final SimpleFormatter messages = new SimpleFormatter();

  HclogHandler(PrintStream out) {
    this.out = out;
    setLevel(Level.ALL);
  }

  /** Makes this the only handler of the root logger, unless the plugin's author configured logging. */
  static void install(PrintStream out) {
    if (System.getProperty("java.util.logging.config.file") != null
        || System.getProperty("java.util.logging.config.class") != null) {
      return;
    }
    LogManager.getLogManager().reset();
    Logger root = Logger.getLogger("");
    root.setLevel(Level.INFO);
    root.addHandler(new HclogHandler(out));
  }

  @Override
  public void publish(LogRecord record) {
    if (!isLoggable(record)) {
      return;
    }
    byte[] line = (line(record) + "\n").getBytes(StandardCharsets.UTF_8);
    // One write for each line, so that lines of several threads don't mix.
    out.write(line, 0, line.length);
    out.flush();
  }

  @Override
  public void flush() {
    out.flush();
  }

  @Override
  public void close() {
    flush();
  }

  String line(LogRecord record) {
    StringBuilder json = new StringBuilder(256);
    json.append("{\"@level\":\"").append(level(record.getLevel()));
    json.append("\",\"@message\":");
    quote(json, String.valueOf(messages.formatMessage(record)));
    json.append(",\"@timestamp\":\"");
    timestamp(json, record.getInstant().atZone(ZoneOffset.UTC));
    json.append("\",\"@module\":");
    quote(json, String.valueOf(record.getLoggerName()));
    Throwable thrown = record.getThrown();
    if (thrown != null) {
      StringWriter trace = new StringWriter();
      thrown.printStackTrace(new PrintWriter(trace));
      json.append(",\"error\":");
      quote(json, thrown.toString());
      json.append(",\"stacktrace\":");
      quote(json, trace.toString());
    }
    return json.append('}').toString();
  }

  private static String level(Level level) {
    int value = level.intValue();
    if (value >= Level.SEVERE.intValue()) {
      return "error";
    }
    if (value >= Level.WARNING.intValue()) {
      return "warn";
    }
    if (value >= Level.INFO.intValue()) {
      return "info";
    }
    return value >= Level.FINE.intValue() ? "debug" : "trace";
  }

  /** Exactly six digits of fraction: hclog takes a line with another number of them for plain text. */
  private static void timestamp(StringBuilder json, ZonedDateTime time) {
    padded(json, time.getYear(), 4).append('-');
    padded(json, time.getMonthValue(), 2).append('-');
    padded(json, time.getDayOfMonth(), 2).append('T');
    padded(json, time.getHour(), 2).append(':');
    padded(json, time.getMinute(), 2).append(':');
    padded(json, time.getSecond(), 2).append('.');
    padded(json, time.getNano() / 1000, 6).append('Z');
  }

  private static StringBuilder padded(StringBuilder json, int number, int digits) {
    String text = Integer.toString(number);
    return json.append("0".repeat(Math.max(0, digits - text.length()))).append(text);
  }

  private static void quote(StringBuilder json, String text) {
    json.append('"');
    for (int i = 0; i < text.length(); i++) {
      char c = text.charAt(i);
      switch (c) {
        case '"' -> json.append("\\\"");
        case '\\' -> json.append("\\\\");
        case '\n' -> json.append("\\n");
        case '\r' -> json.append("\\r");
        case '\t' -> json.append("\\t");
        default -> {
          if (c < ' ') {
            json.append("\\u00").append(Character.forDigit(c >> 4, 16)).append(Character.forDigit(c & 15, 16));
          } else {
            json.append(c);
          }
        }
      }
    }
    json.append('"');
  }
}
