-- What the scripts share. Every script is this file, ends.lua, window.lua, then its own. In front stand, from
-- jobs/store.py: ENDS (event -> terminal state, from jobs/states.py), SHARED (from jobs/errors.py) and the bounds of
-- jobs.store.Flow in capitals.
--
-- KEYS[1] is the prefix of every key, ARGV is the script's own. A script runs alone and whole, so each function may
-- read, decide and write. Instants are milliseconds on the store's clock. Keys, types and sizes are listed in
-- docs/store.md.

local P = KEYS[1]
local SCHEMA = 1
local LOST_AFTER = 2000        -- an unleased micro-batch is not looked at before
local LOST_AFTER_MAX = 32000   -- nor later than, however often it was published again
local WINDOW_MIN = 2           -- micro-batches in the broker while no worker is known
local LIGHT_US = 10000         -- three hops on the broker, measured: 3 to 10 ms of work for gateway and worker
local STAGES = 3
local MICROBATCH_TTL = 2764800000    -- 32 days, above the longest deadline that a model may allow
local WORKER_TTL = 15000
local RETURNS_MAX = 5          -- times that a micro-batch may come back unharmed before its jobs are charged
local RETRY_EVERY_MS = 100     -- the retry budget of a model version: 10 retries a second...
local RETRY_CREDIT_MS = 10     -- ...and one more for every ten first attempts...
local RETRY_BURST_MS = 10000   -- ...of which it saves up at most 100
local DROPS_MAX = 100          -- dead letters that one end may push out
local UNPACK_MAX = 1000        -- arguments of one call; Lua's stack takes 8,000
local BULK_EVERY = 10          -- of so many micro-batches one is bulk, however many interactive jobs wait
local SUSPECTS_LOOK = 10       -- suspects of paused models that are passed over
local FOLLOWERS_AT_ONCE = 256  -- jobs that are told another's answer in one script
local FAILURE_FRESH_MS = 10000 -- how long a failure that the input is to blame for is told again

local call = redis.call
local time = call('TIME')
local NOW = time[1] * 1000 + math.floor(time[2] / 1000)

local ended = {}    -- {id, state, line} of every job that this script ended
local ended_ids = {}

-- A server whose memory is full refuses the first write of a script if it may take memory, and lets pass all that
-- follows another one. Scripts that end or hand on what was accepted begin with this harmless one: they must go on, or
-- nothing would ever be freed. A submit does not: it is refused, and has then written nothing.
local function even_if_full() call('DEL', P .. 'nothing') end

-- A line is "pool/lane/model/version": the jobs that may share a micro-batch.
local pools, lanes = {}, {}    -- by line, so that a line is taken apart once
local function pool_of(line)
  if not pools[line] then pools[line], lanes[line] = string.match(line, '^([^/]+)/([^/]+)') end
  return pools[line]
end
local function lane_of(line) return pool_of(line) and lanes[line] end
local function queue_of(line, stage) return pool_of(line) .. '.' .. stage .. '.' .. lane_of(line) end

-- Puts a line among those with waiting jobs: in front, beside whoever's turn is next.
local function line_up(line)
  local lines = P .. 'lines:' .. pool_of(line) .. ':' .. lane_of(line)
  local first = call('ZRANGE', lines, 0, 0, 'WITHSCORES')
  call('ZADD', lines, 'NX', first[2] or 0, line)
end

-- Puts a job ahead of all first attempts of its line: it has waited its turn before.
local function wait_in_front(line, id)
  call('ZADD', P .. 'line:' .. line, NOW - 1e13, id)
  line_up(line)
end

-- A line serves its tenants by weighted turns (start-time fair queueing; Goyal, Vin and Cheng, SIGCOMM 1996). A job's
-- score is its turn: where the line stands now, or one stride (1 / weight) behind the tenant's job before it. So one
-- order holds position, fairness and the jobs themselves; a tenant alone is served first in, first out. The hash
-- 'turns:{line}' holds by tenant where its next job goes, and '.now', how far the line is; it goes when the line empties.
local turns = {}    -- what this script knows of them, by line

local function turns_of(line)
  local known = turns[line]
  if not known then
    known = {now = tonumber(call('HGET', P .. 'turns:' .. line, '.now')), next = {}}
    known.waits = known.now ~= nil    -- jobs, so it is lined up
    if not known.now then
      local first = call('ZRANGEBYSCORE', P .. 'line:' .. line, 0, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
      known.now = tonumber(first[2] or 0)
    end
    turns[line] = known
  end
  return known
end

local function turn_of(line, tenant, stride)
  local known = turns_of(line)
  local turn = known.next[tenant] or tonumber(call('HGET', P .. 'turns:' .. line, tenant) or 0)
  turn = math.max(turn, known.now)
  known.next[tenant] = turn + stride
  return turn
end

-- Writes down where the tenants of a line stand. Called once for each line that got jobs.
local function keep_turns(line)
  local known, fields = turns[line], {}
  for tenant, turn in pairs(known.next) do fields[#fields + 1], fields[#fields + 2] = tenant, string.format('%.17g', turn) end
  call('HSET', P .. 'turns:' .. line, '.now', string.format('%.17g', known.now), unpack(fields))
end

-- A line that is empty forgets where its tenants stood.
local function forget_turns(line)
  call('DEL', P .. 'turns:' .. line)
  turns[line] = nil
end

local function stop_waiting(id, line)
  if call('ZREM', P .. 'line:' .. line, id) == 1 and call('EXISTS', P .. 'line:' .. line) == 0 then forget_turns(line) end
  call('ZREM', P .. 'suspects:' .. pool_of(line), id)
  call('ZREM', P .. 'retries', id)
end

-- How many open jobs each tenant has: the hash 'open'. `opened` is what this script changes, written by `count_open`.
local opened = {}
local function count_open()
  for tenant, change in pairs(opened) do
    if call('HINCRBY', P .. 'open', tenant, change) <= 0 then call('HDEL', P .. 'open', tenant) end
  end
end
