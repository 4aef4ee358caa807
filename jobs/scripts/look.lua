-- What a gateway must know to say no early and to estimate: everything at one moment, bounded. ARGV: most lines, most
-- tenants of a line, most tenants of all. Replies {now, open jobs, {tenant, open jobs...}, paused models, workers that start,
-- pools, lines, entries of the cache, evictions}. A pool: {name, workers, slots, micro-batches in the window, of these bulk}.
-- A line: {name, jobs that wait, where it stands, {tenant, where its next job goes...}, its pace, costs by stage}.
local lines_max, turns_max, tenants_max = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

local function first_of(key, most)
  if call('HLEN', key) <= most then return call('HGETALL', key) end
  return call('HSCAN', key, 0, 'COUNT', most)[2]
end

local pools, lines, known = {}, {}, {}    -- lines with waiting jobs first
local function add(line)
  if not known[line] then lines[#lines + 1], known[line] = line, true end
end
for _, pool in ipairs(call('SMEMBERS', P .. 'pools')) do
  local workers, slots = 0, 0
  for _, each in ipairs(call('HVALS', P .. 'slots:' .. pool)) do workers, slots = workers + 1, slots + tonumber(each) end
  pools[#pools + 1] = {pool, workers, slots, call('ZCARD', P .. 'live:' .. pool), call('SCARD', P .. 'bulk-live:' .. pool)}
  for _, lane in ipairs({'interactive', 'bulk'}) do
    for _, line in ipairs(call('ZRANGE', P .. 'lines:' .. pool .. ':' .. lane, 0, lines_max - 1)) do add(line) end
  end
end
for _, line in ipairs(call('SMEMBERS', P .. 'paced')) do add(line) end

local told = {}
for i = 1, math.min(#lines, lines_max) do
  local line = lines[i]
  told[#told + 1] = {line, call('ZCARD', P .. 'line:' .. line), call('HGET', P .. 'turns:' .. line, '.now') or '0',
    first_of(P .. 'turns:' .. line, turns_max), call('HGETALL', P .. 'pace:' .. line),
    call('HVALS', P .. 'cost:' .. string.match(line, '^[^/]+/[^/]+/(.+)$'))}
end
return {NOW, call('ZCARD', P .. 'deadlines'), first_of(P .. 'open', tenants_max), call('SMEMBERS', P .. 'paused'),
  call('ZCOUNT', P .. 'starting', NOW, '+inf'), pools, told, call('ZCARD', P .. 'cache-ends'),
  tonumber(call('GET', P .. 'cache-evictions') or 0)}
