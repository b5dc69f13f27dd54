-- Sends what its arguments say (method, size of the body, number of further headers, user) and prints what wrk measured as
-- one line of JSON.

function init(args)
  wrk.method = args[1]
  if tonumber(args[2]) > 0 then
    wrk.body = string.rep("x", tonumber(args[2]))
  end
  for index = 1, tonumber(args[3]) do
    wrk.headers["x-header-" .. index] = "a value of some length, " .. index
  end
  wrk.headers["user"] = args[4]
end

function done(summary, latency, requests)
  io.write(string.format(
    '{"requests":%d,"bytes":%d,"us":%d,"status_errors":%d,"errors":%d,"p50":%d,"p99":%d,"p999":%d}\n',
    summary.requests, summary.bytes, summary.duration, summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
