-- Writes accepted jobs: record, payload, deadline and place in their line. This is the acceptance; then fills
-- the window. ARGV for each job: id, line, head, media type and input in one, deadline, attempts_max, trace.
-- Replies {now, micro-batches to publish}.
local lines, deadlines = {}, {}
for i = 1, #ARGV, 7 do
  local id, line, deadline, trace = ARGV[i], ARGV[i + 1], ARGV[i + 4], ARGV[i + 6]
  local key = P .. 'job:' .. id
  if call('EXISTS', key) == 0 then    -- a gateway whose connection broke asks again
    call('HSET', key, 'v', SCHEMA, 'state', 'queued', 'line', line, 'head', ARGV[i + 2], 'input', ARGV[i + 3],
      'deadline', deadline, 'limit', ARGV[i + 5])
    if trace ~= '' then call('HSET', key, 'trace', trace) end
    local entries = lines[line] or {}
    lines[line] = entries
    entries[#entries + 1], entries[#entries + 2] = NOW, id
    deadlines[#deadlines + 1], deadlines[#deadlines + 2] = deadline, id
  end
end
if #deadlines > 0 then call('ZADD', P .. 'deadlines', unpack(deadlines)) end
local made = {}
for line, entries in pairs(lines) do
  wait(line, entries)
  call('SADD', P .. 'pools', pool_of(line))
  fill(pool_of(line), made)
end
return {NOW, made}
