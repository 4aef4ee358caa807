-- Writes accepted jobs: record, payload, deadline and place in their line. This is the acceptance; then fills
-- the window. ARGV[6..] for each job: id, line, head, media type and input in one, deadline, attempts_max, trace.
-- Replies {now, micro-batches to publish}.
local pools = {}
for i = 6, #ARGV, 7 do
  local id, line, trace = ARGV[i], ARGV[i + 1], ARGV[i + 6]
  local key = P .. 'job:' .. id
  if call('EXISTS', key) == 0 then    -- a gateway whose connection broke asks again
    call('HSET', key, 'v', SCHEMA, 'state', 'queued', 'line', line, 'head', ARGV[i + 2], 'input', ARGV[i + 3],
      'deadline', ARGV[i + 4], 'limit', ARGV[i + 5])
    if trace ~= '' then call('HSET', key, 'trace', trace) end
    call('ZADD', P .. 'deadlines', ARGV[i + 4], id)
    wait(id, line, NOW)
    pools[pool_of(line)] = true
  end
end
local made = {}
for pool in pairs(pools) do
  call('SADD', P .. 'pools', pool)
  fill(pool, made)
end
return {NOW, made}
