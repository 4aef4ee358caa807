-- One bounded pass of the sweeper. ARGV: who sweeps, its lease in ms, most entries a kind, 1 where the broker is back after an
-- outage: then every micro-batch that waits unleased is looked at now, however often it was published in vain before.
-- Replies {0} when another sweeps; else {1, to publish, ended, doubtful, what it did}. A doubtful micro-batch, {number,
-- sequence, queue}, waits unleased for longer than it should and nothing younger was received: it is lost only if
-- the broker says that its queue is empty.
-- After a pause of all sweepers (the store was away, so was every sign of life) silence is no death: each lease that ran
-- out in it lasts once three quarters of its length longer (a worker speaks in each third, and waits no longer than that
-- for an answer), and no worker is forgotten in that pass.
even_if_full()
local sweeper, most = P .. 'sweeper', tonumber(ARGV[3])
local holder, swept = string.match(call('GET', sweeper) or '', '^(.*) (%d+)$')
if holder and holder ~= ARGV[1] then return {0} end
call('SET', sweeper, string.format('%s %d', ARGV[1], NOW), 'PX', ARGV[2])
local PAUSE = 2000
local after_pause = not swept or NOW - swept > PAUSE

local FLIGHTS_LOOK = 4          -- of those under way, drawn at random
local LANDED_LOOK = 4           -- flights whose followers are still to be told
local DEAD_LETTERS_LOOK = 10    -- entries whose record may be past its TTL, looked at in each pass
local made, doubtful = {}, {}
local recovered, published, retried = 0, 0, 0

for _, id in ipairs(call('ZRANGEBYSCORE', P .. 'deadlines', '-inf', NOW, 'LIMIT', 0, most)) do
  local number = call('HGET', P .. 'job:' .. id, 'microbatch')
  local stage = number and call('HGET', P .. 'microbatch:' .. number, 'stage')
  if not finish(id, 'expire', nil, 'deadline-passed', stage or '') then call('ZREM', P .. 'deadlines', id) end
end

for _, id in ipairs(call('ZRANGEBYSCORE', P .. 'retries', '-inf', NOW, 'LIMIT', 0, most)) do
  call('ZREM', P .. 'retries', id)
  local line = call('HGET', P .. 'job:' .. id, 'line')
  if line then
    wait_in_front(line, id)
    retried = retried + 1
  end
end

for _, id in ipairs(call('SRANDMEMBER', P .. 'landed', LANDED_LOOK)) do
  if share(id, most) then call('SREM', P .. 'landed', id) end
end

-- A flight whose leader was ended by a server of the version before, which knows none, would never land.
local flights = call('EXISTS', P .. 'flights') == 1 and call('HRANDFIELD', P .. 'flights', FLIGHTS_LOOK, 'WITHVALUES') or {}
for i = 1, #flights, 2 do
  if call('HGET', P .. 'job:' .. flights[i + 1], 'state') ~= 'queued' then
    lead_next(flights[i], string.match(flights[i], '^%S+'))
  end
end

local stale = call('ZRANGEBYSCORE', P .. 'cache-ends', '-inf', NOW, 'LIMIT', 0, most)
if #stale > 0 then
  call('ZREM', P .. 'cache-ends', unpack(stale))
  call('HDEL', P .. 'cache', unpack(stale))
end

call('ZREMRANGEBYSCORE', P .. 'starting', '-inf', NOW)

for _, gone in ipairs(after_pause and {} or call('ZRANGEBYSCORE', P .. 'workers-seen', '-inf', NOW - WORKER_TTL)) do
  call('ZREM', P .. 'workers-seen', gone)
  call('HDEL', P .. 'workers', gone)
  for _, pool in ipairs(call('SMEMBERS', P .. 'pools')) do call('HDEL', P .. 'slots:' .. pool, gone) end
end

for _, id in ipairs(call('ZRANGE', P .. 'dead-letters', 0, DEAD_LETTERS_LOOK - 1)) do    -- the oldest
  if call('EXISTS', P .. 'job:' .. id) == 0 then unlist_dead_letter(id) end
end

local JUST_PUBLISHED = 250
local function forget_outage(pool)
  for _, number in ipairs(call('ZRANGE', P .. 'live:' .. pool, 0, most - 1)) do
    local batch = call('HMGET', P .. 'microbatch:' .. number, 'holder', 'published')
    if batch[1] == '' and tonumber(batch[2]) < NOW - JUST_PUBLISHED then
      call('HSET', P .. 'microbatch:' .. number, 'again', 0)
      call('ZADD', P .. 'live:' .. pool, NOW, number)
    end
  end
end

local function look_at(pool, number)
  local live, key = P .. 'live:' .. pool, P .. 'microbatch:' .. number
  local batch = call('HMGET', key, 'line', 'stage', 'sequence', 'lease', 'holder', 'members', 'suspect', 'published',
    'granted', 'spared', 'epoch')
  local line, stage = batch[1], batch[2]
  if not line then
    call('ZREM', live, number)
    call('SREM', P .. 'suspects-live:' .. pool, number)
    call('SREM', P .. 'bulk-live:' .. pool, number)
  elseif batch[5] ~= '' then
    if tonumber(batch[4]) > NOW then
      call('ZADD', live, batch[4], number)
    elseif after_pause and batch[10] ~= batch[11] then
      local until_ms = NOW + math.floor(tonumber(batch[9] or 0) * 0.75)
      call('HSET', key, 'spared', batch[11], 'lease', until_ms)
      call('ZADD', live, until_ms, number)
    else
      local charged = is_charged(batch[7] == '1', batch[5], tonumber(batch[9] or 0))
      recover(number, line, stage, batch[6], charged, 'worker-lost')
      recovered = recovered + 1
    end
  elseif tonumber(call('HGET', P .. 'seen', queue_of(line, stage)) or 0) > tonumber(batch[8]) then
    made[#made + 1] = publish_again(number, line, stage)
    published = published + 1
  else
    call('ZADD', live, NOW + LOST_AFTER / 2, number)
    doubtful[#doubtful + 1] = {number, batch[3], queue_of(line, stage)}
  end
end

for _, pool in ipairs(call('SMEMBERS', P .. 'pools')) do
  if ARGV[4] == '1' then forget_outage(pool) end
  for _, number in ipairs(call('ZRANGEBYSCORE', P .. 'live:' .. pool, '-inf', NOW, 'LIMIT', 0, most)) do
    look_at(pool, number)
  end
  fill(pool, made)
end
announce()
return {1, made, ended, doubtful, {recovered, published, retried}}
