package io.palisade.plugin.internal;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.time.Instant;
import java.util.logging.Level;
import java.util.logging.LogRecord;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class HclogHandlerTest {

  private static String line(LogRecord record) {
    ByteArrayOutputStream out = new ByteArrayOutputStream();
    new HclogHandler(new PrintStream(out, false, StandardCharsets.UTF_8)).publish(record);
    return out.toString(StandardCharsets.UTF_8);
  }

  private static LogRecord record(Level level, String message) {
    LogRecord record = new LogRecord(level, message);
    record.setLoggerName("a.B");
    record.setInstant(Instant.parse("2026-01-02T03:04:05.000007Z"));
    return record;
  }

  @Test
  void a_record_is_one_line_with_six_digits_of_fraction() {
    assertEquals(
        "{\"@level\":\"info\",\"@message\":\"say \\\"hi\\\"\\n\\u0001 ü \\\\\","
            + "\"@timestamp\":\"2026-01-02T03:04:05.000007Z\",\"@module\":\"a.B\"}\n",
        line(record(Level.INFO, "say \"hi\"\n\u0001 ü \\")));
  }

  @Test
  void parameters_are_put_in() {
    LogRecord record = record(Level.INFO, "{0} of {1}");
    record.setParameters(new Object[] {"one", 2});
    assertTrue(line(record).contains("\"@message\":\"one of 2\""));
  }

  @Test
  void an_exception_is_part_of_the_line() {
    LogRecord record = record(Level.SEVERE, "failed");
    record.setThrown(new IOException("disk"));
    String line = line(record);
    assertTrue(line.contains("\"error\":\"java.io.IOException: disk\""), line);
    assertTrue(line.contains("\"stacktrace\":\"java.io.IOException: disk\\n\\tat "), line);
    assertEquals(line.length() - 1, line.indexOf('\n'));
  }

  @Test
  void nothing_at_all_is_a_record_too() {
    LogRecord record = record(Level.INFO, null);
    record.setLoggerName(null);
    assertTrue(line(record).startsWith("{\"@level\":\"info\",\"@message\":\""));
  }

  @ParameterizedTest
  @CsvSource({"SEVERE,error", "WARNING,warn", "INFO,info", "CONFIG,debug", "FINE,debug", "FINER,trace", "FINEST,trace"})
  void levels_have_the_names_of_hclog(String level, String name) {
    assertTrue(line(record(Level.parse(level), "x")).startsWith("{\"@level\":\"" + name + "\""));
  }
}
