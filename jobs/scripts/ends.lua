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

-- Result cache: the hash 'cache' says by key which job has the answer and since when, 'cache-ends' until when that counts.
-- The answer itself lies in that job's record, so it is told for no longer than that is kept.
local function remember(cache, id, fresh_ms)
  fresh_ms = math.min(fresh_ms, RETENTION_MS)
  if fresh_ms <= 0 then return end
  call('HSET', P .. 'cache', cache, id .. ' ' .. NOW)
  call('ZADD', P .. 'cache-ends', NOW + fresh_ms, cache)
  for _ = 1, DROPS_MAX do
    if call('ZCARD', P .. 'cache-ends') <= CACHE_MAX then return end
    call('HDEL', P .. 'cache', call('ZPOPMIN', P .. 'cache-ends')[1])
    call('INCR', P .. 'cache-evictions')
  end
end

-- {id, document, age in ms} of the answer that is known to a cache key, or nil.
local function recall(cache)
  local found = call('HGET', P .. 'cache', cache)
  if not found or tonumber(call('ZSCORE', P .. 'cache-ends', cache) or 0) <= NOW then return nil end
  local id, since = string.match(found, '^(%S+) (%d+)$')
  local job = call('HMGET', P .. 'job:' .. id, 'state', 'document')
  if not job[2] or job[1] == 'queued' then return nil end
  return {id, job[2], math.max(0, NOW - since)}
end

-- Single flight: jobs of one line with one cache key. One leads and is queued; the others follow it: open jobs with their
-- own id, deadline and input, that stand in no line. 'flights' says who leads, 'followers:{flight}' who follows, by
-- when they joined.
local function flight_of(line, cache) return line .. ' ' .. cache end

-- Forgets where an open job that travels in no micro-batch waits.
local function forget_place(id, job)
  if job.follows then
    call('ZREM', P .. 'followers:' .. flight_of(job.line, job.cache), id)
  else
    stop_waiting(id, job.line)
  end
end

-- The first follower of a flight leads, if there is one; it has waited, so it goes ahead of its line.
local function lead_next(flight, line)
  local first = call('ZPOPMIN', P .. 'followers:' .. flight)[1]
  if first then
    call('HSET', P .. 'flights', flight, first)
    call('HDEL', P .. 'job:' .. first, 'follows')
    wait_in_front(line, first)
  else
    call('HDEL', P .. 'flights', flight)
  end
end

local land
local to_tell = FOLLOWERS_AT_ONCE    -- followers to whom this script may yet tell an answer

-- Ends an open job; false, and nothing changed, when it has ended already or (where `number` is given) does not
-- travel in that micro-batch. Whatever the event, a job whose cancellation was promised is cancelled. A completed job
-- keeps its document alone, or the id of the job that it `joined` and which has the document; a failed or expired one its
-- input too, for whoever runs it again.
local function finish(id, event, document, code, stage, number, joined)
  local key = P .. 'job:' .. id
  local found = call('HMGET', key, 'state', 'line', 'microbatch', 'cancel', 'tenant', 'cache', 'follows', 'fresh')
  local job = {line = found[2], cache = found[6], follows = found[7]}
  if found[1] ~= 'queued' or (number and found[3] ~= number) then return false end
  if found[4] then event, document, code = 'cancel', nil, 'cancelled-by-client' end
  local state = ENDS[event]
  if event == 'complete' then
    local head = joined and call('HGET', key, 'head')
    call('DEL', key)
    if joined then call('HSET', key, 'v', SCHEMA, 'state', state, 'joined', joined, 'head', head)
    else call('HSET', key, 'v', SCHEMA, 'state', state, 'document', document) end
  else
    call('HSET', key, 'state', state, 'ended', NOW, 'code', code or '', 'stage', stage or '')
    call('HDEL', key, 'microbatch', 'cache', 'follows', event == 'cancel' and 'input' or 'cancel')
    if document and document ~= '' then call('HSET', key, 'document', document) end
    if joined and document and document ~= '' then call('HSET', key, 'joined', joined) end    -- else its own record tells
  end
  if not found[3] and not joined then forget_place(id, job) end
  if event == 'fail' then keep_dead_letter(id) else call('PEXPIRE', key, RETENTION_MS) end
  ended[#ended + 1] = {id, state, job.line}
  ended_ids[#ended] = id
  if found[5] then opened[found[5]] = (opened[found[5]] or 0) - 1 end
  if job.cache and not job.follows then land(id, job, event, document, code, stage, tonumber(found[8])) end
  return true
end

-- Ends the followers of a completed job, at most `most`; whether none are left, and how many it were. One that ended by
-- itself meanwhile, and was perhaps run again, follows no more.
local function share(id, most)
  local landed = P .. 'landed:' .. id
  local followers = most > 0 and call('ZRANGE', landed, 0, most - 1) or {}
  if #followers > 0 then call('ZREMRANGEBYRANK', landed, 0, #followers - 1) end
  for _, each in ipairs(followers) do
    local follows = call('HEXISTS', P .. 'job:' .. each, 'follows') == 1
    if follows and finish(each, 'complete', nil, nil, nil, nil, id) then    -- it goes when the document goes
      call('PEXPIRE', P .. 'job:' .. each, math.max(1, call('PTTL', P .. 'job:' .. id)))
    end
  end
  return call('EXISTS', landed) == 0, #followers
end

-- A job that led a flight, or could have led one, has ended. Its followers get its answer, or its failure where the
-- input is to blame (SHARED; what it says is whether that may be cached); otherwise the first of them leads.
land = function(id, job, event, document, code, stage, fresh_ms)
  if event == 'complete' then remember(job.cache, id, fresh_ms) end
  if event == 'fail' and SHARED[code] and document and document ~= '' then
    remember(job.cache, id, math.min(fresh_ms, FAILURE_FRESH_MS))
  end
  local flight = flight_of(job.line, job.cache)
  if call('HGET', P .. 'flights', flight) ~= id then return end
  call('HDEL', P .. 'flights', flight)
  local followers = P .. 'followers:' .. flight
  if call('EXISTS', followers) == 0 then return end
  if event == 'complete' then
    call('RENAME', followers, P .. 'landed:' .. id)
    local all, told = share(id, to_tell)
    to_tell = to_tell - told
    if not all then call('SADD', P .. 'landed', id) end    -- the sweeper goes on
    return
  end
  if event == 'fail' and SHARED[code] ~= nil then
    for _, each in ipairs(call('ZRANGE', followers, 0, FOLLOWERS_AT_ONCE - 1)) do
      call('ZREM', followers, each)
      finish(each, event, document, code, stage, nil, id)
    end
  end
  lead_next(flight, job.line)
end

-- For what was ended: no deadline any more, and whoever waits for a result is woken. Called once, at the end of a
-- script that may have ended jobs.
local function announce()
  if #ended == 0 then return end
  for i = 1, #ended_ids, UNPACK_MAX do
    call('ZREM', P .. 'deadlines', unpack(ended_ids, i, math.min(i + UNPACK_MAX - 1, #ended_ids)))
  end
  count_open()
  call('PUBLISH', P .. 'ended', table.concat(ended_ids, ' '))
end

local function close(number, line)
  local pool = pool_of(line)
  call('DEL', P .. 'microbatch:' .. number)
  call('ZREM', P .. 'live:' .. pool, number)
  call('SREM', P .. 'suspects-live:' .. pool, number)
  if lane_of(line) == 'bulk' then call('SREM', P .. 'bulk-live:' .. pool, number) end
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

