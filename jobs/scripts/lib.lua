-- What the scripts share. Every script is this file, then its own. In front stand, from jobs/store.py: ENDS (event ->
-- terminal state, from jobs/states.py) and the bounds of jobs.store.Flow in capitals.
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

-- Puts jobs in line: `entries` is score, id, score, id...
local function wait(line, entries)
  call('ZADD', P .. 'line:' .. line, unpack(entries))
  call('ZADD', P .. 'lines:' .. pool_of(line) .. ':' .. lane_of(line), 'NX', 0, line)
end

local function stop_waiting(id, line)
  local pool = pool_of(line)
  call('ZREM', P .. 'line:' .. line, id)
  call('ZREM', P .. 'suspects:' .. pool, id)
  call('ZREM', P .. 'retries', id)
end

-- A dead letter is listed by its sequence number, and what it keeps is counted: the hash 'dead-letter-bytes' holds the
-- bytes of each id, and their 'total'.
local function list_dead_letter(id)
  local bytes = call('HSTRLEN', P .. 'job:' .. id, 'input')
  call('ZADD', P .. 'dead-letters', call('INCR', P .. 'sequence'), id)
  call('HSET', P .. 'dead-letter-bytes', id, bytes)
  call('HINCRBY', P .. 'dead-letter-bytes', 'total', bytes)
end

local function unlist_dead_letter(id)
  call('ZREM', P .. 'dead-letters', id)
  local bytes = call('HGET', P .. 'dead-letter-bytes', id)
  if bytes then
    call('HDEL', P .. 'dead-letter-bytes', id)
    call('HINCRBY', P .. 'dead-letter-bytes', 'total', -bytes)
  end
  if call('EXISTS', P .. 'dead-letters') == 0 then call('DEL', P .. 'dead-letter-bytes') end
end

-- Forgets a dead letter and its input; the job's end can be read until its retention is over.
local function drop_dead_letter(id)
  local key = P .. 'job:' .. id
  unlist_dead_letter(id)
  call('HDEL', key, 'input')
  local at = tonumber(call('HGET', key, 'ended') or 0)
  call('PEXPIRE', key, math.max(1, at + RETENTION_MS - NOW))
end

-- {id, head, attempt, stage, ended, code, bytes of the input}, or nil where there is no such dead letter.
local function dead_letter(id)
  local key = P .. 'job:' .. id
  local job = call('HMGET', key, 'head', 'attempt', 'stage', 'ended', 'code')
  if not job[1] or not call('ZSCORE', P .. 'dead-letters', id) then return nil end
  return {id, job[1], tonumber(job[2] or 1), job[3], tonumber(job[4]), job[5], call('HSTRLEN', key, 'input')}
end

local function too_many_dead_letters()
  return call('ZCARD', P .. 'dead-letters') > DEAD_LETTERS_MAX
    or tonumber(call('HGET', P .. 'dead-letter-bytes', 'total') or 0) > DEAD_LETTERS_BYTES_MAX
end

local function keep_dead_letter(id)
  list_dead_letter(id)
  call('PEXPIRE', P .. 'job:' .. id, DEAD_LETTER_RETENTION_MS)
  for _ = 1, DROPS_MAX do
    if not too_many_dead_letters() then return end
    drop_dead_letter(call('ZRANGE', P .. 'dead-letters', 0, 0)[1])
  end
end

-- Ends an open job; false, and nothing changed, when it has ended already or (where `number` is given) does not
-- travel in that micro-batch. Whatever the event, a job whose cancellation was promised is cancelled. A completed job
-- keeps its document alone, a failed or expired one its input too, for whoever runs it again.
local function finish(id, event, document, code, stage, number)
  local key = P .. 'job:' .. id
  local job = call('HMGET', key, 'state', 'line', 'microbatch', 'cancel')
  if job[1] ~= 'queued' or (number and job[3] ~= number) then return false end
  if job[4] then event, document, code = 'cancel', nil, 'cancelled-by-client' end
  local state = ENDS[event]
  if event == 'complete' then
    call('DEL', key)
    call('HSET', key, 'v', SCHEMA, 'state', state, 'document', document)
  else
    call('HSET', key, 'state', state, 'ended', NOW, 'code', code or '', 'stage', stage or '')
    call('HDEL', key, 'microbatch', event == 'cancel' and 'input' or 'cancel')
    if document and document ~= '' then call('HSET', key, 'document', document) end
  end
  if not job[3] then stop_waiting(id, job[2]) end
  if event == 'fail' then keep_dead_letter(id) else call('PEXPIRE', key, RETENTION_MS) end
  ended[#ended + 1] = {id, state, job[2]}
  ended_ids[#ended] = id
  return true
end

-- For what was ended: no deadline any more, and whoever waits for a result is woken. Called once, at the end of a
-- script that may have ended jobs.
local function announce()
  if #ended == 0 then return end
  for i = 1, #ended_ids, UNPACK_MAX do
    call('ZREM', P .. 'deadlines', unpack(ended_ids, i, math.min(i + UNPACK_MAX - 1, #ended_ids)))
  end
  call('PUBLISH', P .. 'ended', table.concat(ended_ids, ' '))
end

local function close(number, line)
  local pool = pool_of(line)
  call('DEL', P .. 'microbatch:' .. number)
  call('ZREM', P .. 'live:' .. pool, number)
  call('SREM', P .. 'suspects-live:' .. pool, number)
end

-- The next attempt of a job: its number, and when it may begin. A model version has a budget of retries: each takes
-- its turn RETRY_EVERY_MS after the one before, and each first attempt brings the next turn RETRY_CREDIT_MS nearer.
local function try_again(id, line, delay)
  local key, version = P .. 'job:' .. id, string.match(line, '^[^/]+/[^/]+/(.+)$')
  call('HINCRBY', key, 'attempt', call('HEXISTS', key, 'attempt') == 1 and 1 or 2)
  call('HDEL', key, 'microbatch')
  local turn = math.max(tonumber(call('HGET', P .. 'retry-turns', version) or 0), NOW - RETRY_BURST_MS) + RETRY_EVERY_MS
  call('HSET', P .. 'retry-turns', version, turn)
  call('ZADD', P .. 'retries', math.max(NOW + delay, turn), id)
end

-- What a holder ran comes back, because it died, says that it will, or must not go on. The jobs are suspects, one at a
-- time; only one that ran alone is `charged` an attempt, and fails with `code` at its last.
local function recover(number, line, stage, members, charged, code)
  local pool = pool_of(line)
  for id in string.gmatch(members, '%S+') do
    local key = P .. 'job:' .. id
    local job = call('HMGET', key, 'state', 'microbatch', 'attempt', 'limit', 'cancel')
    if job[1] == 'queued' and job[2] == number then
      local attempt = tonumber(job[3] or 1)
      if job[5] or (charged and attempt >= tonumber(job[4])) then
        finish(id, 'fail', nil, code, stage)
      else
        if charged then call('HSET', key, 'attempt', attempt + 1) end
        call('HDEL', key, 'microbatch')
        call('ZADD', P .. 'suspects:' .. pool, NOW, id)
      end
    end
  end
  close(number, line)
end

-- Whether a suspect whose lease ran out is to be charged: only if its holder is dead. One that gave a sign of life
-- within half a lease has merely lost this lease (it was never told that it had it).
local function is_charged(suspect, holder, granted)
  local seen = tonumber(call('ZSCORE', P .. 'workers-seen', holder) or 0)
  return suspect and seen < NOW - granted / 2
end

-- A micro-batch whose message is lost gets a new sequence number, which voids the old message should it turn up.
-- It is looked at again after twice the time, so that a slow queue is not fed copies.
local function publish_again(number, line, stage)
  local key = P .. 'microbatch:' .. number
  local sequence = call('INCR', P .. 'sequence')
  local again = call('HINCRBY', key, 'again', 1)
  call('HSET', key, 'sequence', sequence, 'published', NOW)
  call('ZADD', P .. 'live:' .. pool_of(line), NOW + math.min(LOST_AFTER_MAX, LOST_AFTER * 2 ^ again), number)
  return {number, tostring(sequence), stage, line, ''}
end

-- How many jobs of a line make a micro-batch: bounded by count and by the slowest stage's measured cost.
local function jobs_for(line)
  local most = JOBS_MAX
  local costs = call('HVALS', P .. 'cost:' .. string.match(line, '^[^/]+/[^/]+/(.+)$'))
  for i = 1, #costs do
    most = math.min(most, math.floor(SLICE_US / math.max(1, tonumber(costs[i]))))
  end
  return math.max(1, most)
end

-- Takes the next waiting jobs of a line, bounded by jobs_for and by bytes (one job always goes).
local function take_from(line)
  local key = P .. 'line:' .. line
  local ids = call('ZRANGE', key, 0, jobs_for(line) - 1)
  local bytes, taken = 0, {}
  for i = 1, #ids do
    bytes = bytes + call('HSTRLEN', P .. 'job:' .. ids[i], 'input')
    if i > 1 and bytes > BYTES_MAX then break end
    taken[i] = ids[i]
  end
  if #taken > 0 then call('ZREM', key, unpack(taken)) end
  return taken
end

local function microbatch(line, ids, suspect)
  local pool = pool_of(line)
  local sequence = call('INCR', P .. 'sequence')
  local number = tostring(sequence)
  local key = P .. 'microbatch:' .. number
  call('HSET', key, 'v', SCHEMA, 'line', line, 'stage', 'preprocess', 'epoch', 0, 'sequence', sequence,
    'published', NOW, 'lease', 0, 'holder', '', 'reference', '', 'stages', '', 'again', 0, 'suspect', suspect and 1 or 0,
    'members', table.concat(ids, ' '))
  call('PEXPIRE', key, MICROBATCH_TTL)
  call('ZADD', P .. 'live:' .. pool, NOW + LOST_AFTER, number)
  if suspect then call('SADD', P .. 'suspects-live:' .. pool, number) end
  for i = 1, #ids do call('HSET', P .. 'job:' .. ids[i], 'microbatch', number) end
  local trace = call('HGET', P .. 'job:' .. ids[1], 'trace')
  return {number, number, 'preprocess', line, trace or ''}
end

-- Whether the waiting jobs of a line would be done, all stages together, in less than the hops between the stages
-- cost. Then a second micro-batch beside the first gains nothing, and halves how many share those hops.
local function light(line)
  local costs, total = call('HVALS', P .. 'cost:' .. string.match(line, '^[^/]+/[^/]+/(.+)$')), 0
  for i = 1, #costs do total = total + tonumber(costs[i]) end
  return #costs == STAGES and total * math.min(jobs_for(line), call('ZCARD', P .. 'line:' .. line)) < LIGHT_US
end

-- The next micro-batch of a pool, or nil: a suspect if none is running, then interactive, then bulk; the lines
-- of a lane take turns. Light lines are passed over unless `light_too`.
local function next_microbatch(pool, light_too)
  if call('SCARD', P .. 'suspects-live:' .. pool) == 0 then
    local id = call('ZPOPMIN', P .. 'suspects:' .. pool)[1]
    local line = id and call('HGET', P .. 'job:' .. id, 'line')
    if line then return microbatch(line, {id}, true) end
  end
  for _, lane in ipairs({'interactive', 'bulk'}) do
    local lines = P .. 'lines:' .. pool .. ':' .. lane
    for _, line in ipairs(call('ZRANGE', lines, 0, -1)) do
      if light_too or not light(line) then
        local ids = take_from(line)
        if #ids > 0 then
          local made = microbatch(line, ids, false)
          call('ZADD', lines, made[2], line)
          return made
        end
        call('ZREM', lines, line)
      end
    end
  end
  return nil
end

-- Fills the window of a pool; what it made must now be published. The window is one micro-batch a worker for light
-- lines and one or more a slot for the others, so that a model that computes never waits for its next batch.
local function fill(pool, made)
  local workers, slots = 0, 0
  for _, each in ipairs(call('HVALS', P .. 'slots:' .. pool)) do
    workers, slots = workers + 1, slots + tonumber(each) * PER_SLOT
  end
  local live = call('ZCARD', P .. 'live:' .. pool)
  while live < math.max(WINDOW_MIN, slots) do
    local next = next_microbatch(pool, live < math.max(1, workers))
    if not next then break end
    made[#made + 1] = next
    live = live + 1
  end
  return made
end
