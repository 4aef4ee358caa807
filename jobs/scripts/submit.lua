-- Writes accepted jobs: record, payload, deadline and place in their line. This is the acceptance; then fills
-- the window. ARGV: number of tenants; for each its name, stride (1 / weight), open jobs allowed ('' any), milliseconds
-- between two jobs at its rate ('' any), burst; number of places to wait at; for each which tenant (from 1), line, stride
-- of the line; number of jobs; for each: id, which place (from 1), head, media type and input in one, deadline,
-- attempts_max, and 1 where there is more to say, else 0: trace, idempotency key ('' none), what is kept under it,
-- cache key ('' none), how long its answer is fresh in ms, 1 where a known answer is not wanted.
-- Replies {now, micro-batches to publish, {place of the job, verdict, ...} of those that were not simply written, what is left of
-- each tenant's rate}. Verdicts: 'replayed' with what is kept under the idempotency key; 'hit' with the id and the document
-- that answer it, and their age in ms; 'joined': written as a follower; 'rate' with ms to wait, 'open': refused, over its
-- tenant's quota.
local FINGERPRINT = 32    -- bytes in front of what is kept under an idempotency key
local ROUNDING_MS = 0.01  -- an instant with its fraction is good to 0.0003 ms, and a bucket adds many of them up
local tenants, at = {}, 2
for i = 1, tonumber(ARGV[1]) do
  local tenant = {name = ARGV[at], stride = tonumber(ARGV[at + 1]), open_max = tonumber(ARGV[at + 2]),
    every = tonumber(ARGV[at + 3]), burst = tonumber(ARGV[at + 4])}
  if tenant.open_max then tenant.open = tonumber(call('HGET', P .. 'open', tenant.name) or 0) end
  if tenant.every then    -- a token bucket as one instant: when it would be full again (GCRA)
    local full_at = math.max(NOW, tonumber(call('HGET', P .. 'rates', tenant.name) or 0))
    tenant.full_at = math.min(full_at, NOW + tenant.burst * tenant.every)    -- what a smaller rate left behind is forgiven
  end
  tenants[i], at = tenant, at + 5
end
local places = {}
at = at + 1
for i = 1, tonumber(ARGV[at - 1]) do
  places[i], at = {tenant = tenants[tonumber(ARGV[at])], line = ARGV[at + 1], stride = ARGV[at + 2]}, at + 3
end

local notes, lines, strides, deadlines = {}, {}, {}, {}

-- Why a job is over its tenant's quota, or nil, and then it counts.
local function over_quota(tenant)
  if tenant.every then
    local wait_ms = tenant.full_at - NOW - (tenant.burst - 1) * tenant.every
    if wait_ms > ROUNDING_MS then return {'rate', math.ceil(wait_ms)} end
  end
  if tenant.open_max and tenant.open >= tenant.open_max then return {'open'} end
  if tenant.every then tenant.full_at, tenant.spent = tenant.full_at + tenant.every, true end
  if tenant.open_max then tenant.open = tenant.open + 1 end
end

-- An answer that there is without running anything: {verdict, ...}, or nil.
local function answered(more)
  if more.idempotency ~= '' then
    local before = call('GET', P .. 'idempotency:' .. more.idempotency)
    if before then return {'replayed', before} end
  end
  local known = more.cache ~= '' and not more.refresh and recall(more.cache)
  if known then return {'hit', unpack(known)} end
end

local function keep_answer(more, kept)
  if more.idempotency ~= '' then call('SET', P .. 'idempotency:' .. more.idempotency, kept, 'PX', IDEMPOTENCY_MS) end
end

-- Whether a job that was written follows another one, which has its cache key and leads.
local function follows(id, key, line, more)
  call('HSET', key, 'cache', more.cache, 'fresh', more.fresh)
  local flight = flight_of(line, more.cache)
  if call('HSETNX', P .. 'flights', flight, id) == 1 or more.refresh then return false end
  call('HSET', key, 'follows', 1)
  call('ZADD', P .. 'followers:' .. flight, NOW, id)
  return true
end

local function write(id, place, head, input, deadline, limit, more)
  local key, tenant, line = P .. 'job:' .. id, place.tenant, place.line
  call('HSET', key, 'v', SCHEMA, 'state', 'queued', 'line', line, 'head', head, 'input', input, 'deadline', deadline,
    'limit', limit, 'tenant', tenant.name)
  deadlines[#deadlines + 1], deadlines[#deadlines + 2] = deadline, id
  opened[tenant.name] = (opened[tenant.name] or 0) + 1
  if more then
    if more.trace ~= '' then call('HSET', key, 'trace', more.trace) end
    if more.cache ~= '' and follows(id, key, line, more) then return {'joined'} end
  end
  local entries = lines[line] or {}
  lines[line], strides[line] = entries, place.stride
  entries[#entries + 1], entries[#entries + 2] = turn_of(line, tenant.name, tenant.stride), id
end

local jobs = tonumber(ARGV[at])
at = at + 1
for i = 1, jobs do
  local id, place, head, input, deadline, limit, more = unpack(ARGV, at, at + 6)
  at = at + 7
  if more == '1' then
    more = {trace = ARGV[at], idempotency = ARGV[at + 1], kept = ARGV[at + 2], cache = ARGV[at + 3], fresh = ARGV[at + 4],
      refresh = ARGV[at + 5] == '1'}
    at = at + 6
  else
    more = nil
  end
  if call('EXISTS', P .. 'job:' .. id) == 0 then    -- a gateway whose connection broke asks again
    place = places[tonumber(place)]
    local note = more and answered(more)
    if note then
      if note[1] == 'hit' then keep_answer(more, string.sub(more.kept, 1, FINGERPRINT) .. note[2]) end    -- and who answered it
    else
      note = over_quota(place.tenant)
      if not note then
        note = write(id, place, head, input, deadline, limit, more)
        if more then keep_answer(more, more.kept) end
      end
    end
    if note then notes[#notes + 1] = {i - 1, unpack(note)} end
  end
end

count_open()
for i = 1, #deadlines, UNPACK_MAX do
  call('ZADD', P .. 'deadlines', unpack(deadlines, i, math.min(i + UNPACK_MAX - 1, #deadlines)))
end
local left = {}
for i, tenant in ipairs(tenants) do
  if tenant.spent then call('HSET', P .. 'rates', tenant.name, string.format('%.17g', tenant.full_at)) end
  if tenant.every then
    local spent_ms = math.max(0, tenant.full_at - NOW - ROUNDING_MS)
    left[#left + 1] = {i - 1, math.floor(tenant.burst - spent_ms / tenant.every), math.ceil(spent_ms)}
  end
end
local made, filled = {}, {}
for line, entries in pairs(lines) do
  local version = string.match(line, '^[^/]+/[^/]+/(.+)$')
  call('ZADD', P .. 'line:' .. line, unpack(entries))
  if not turns[line].waits then
    line_up(line)
    call('SADD', P .. 'pools', pool_of(line))
  end
  keep_turns(line)
  if strides[line] == '1' then call('HDEL', P .. 'strides', version) else call('HSET', P .. 'strides', version, strides[line]) end
end
for line in pairs(lines) do    -- only now: filling takes from any line of the pool, and moves its turns
  local pool = pool_of(line)
  if not filled[pool] then fill(pool, made) end
  filled[pool] = true
end
return {NOW, made, notes, left}
