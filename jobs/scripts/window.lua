-- How many jobs of a line make a micro-batch: bounded by count and by the slowest stage's measured cost.
local function jobs_for(line)
  local most = JOBS_MAX
  local costs = call('HVALS', P .. 'cost:' .. string.match(line, '^[^/]+/[^/]+/(.+)$'))
  for i = 1, #costs do
    most = math.min(most, math.floor(SLICE_US / math.max(1, tonumber(costs[i]))))
  end
  return math.max(1, most)
end

-- Takes the next waiting jobs of a line, bounded by jobs_for and by bytes (one job always goes). The line stands where
-- the last of them did.
local function take_from(line)
  local key = P .. 'line:' .. line
  local waiting = call('ZRANGE', key, 0, jobs_for(line) - 1, 'WITHSCORES')
  local bytes, taken, now = 0, {}, 0
  for i = 1, #waiting, 2 do
    bytes = bytes + call('HSTRLEN', P .. 'job:' .. waiting[i], 'input')
    if i > 1 and bytes > BYTES_MAX then break end
    taken[#taken + 1], now = waiting[i], tonumber(waiting[i + 1])
  end
  if #taken > 0 then call('ZREM', key, unpack(taken)) end
  if call('EXISTS', key) == 0 then
    forget_turns(line)
  elseif now > turns_of(line).now then
    turns_of(line).now = now
    call('HSET', P .. 'turns:' .. line, '.now', string.format('%.17g', now))
  end
  return taken
end

local function microbatch(line, ids, suspect)
  local pool = pool_of(line)
  local sequence = call('INCR', P .. 'sequence')
  local number = tostring(sequence)
  local key = P .. 'microbatch:' .. number
  call('HSET', key, 'v', SCHEMA, 'line', line, 'stage', 'preprocess', 'epoch', 0, 'sequence', sequence,
    'published', NOW, 'lease', 0, 'holder', '', 'reference', '', 'stages', '', 'again', 0, 'suspect', suspect and 1 or 0,
    'made', NOW, 'members', table.concat(ids, ' '))
  call('PEXPIRE', key, MICROBATCH_TTL)
  call('ZADD', P .. 'live:' .. pool, NOW + LOST_AFTER, number)
  if suspect then call('SADD', P .. 'suspects-live:' .. pool, number) end
  if lane_of(line) == 'bulk' then call('SADD', P .. 'bulk-live:' .. pool, number) end
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

local paused    -- models that wait, by name
local function is_paused(line)
  if not paused then
    paused = {}
    for _, model in ipairs(call('SMEMBERS', P .. 'paused')) do paused[model] = true end
  end
  return next(paused) ~= nil and paused[string.match(line, '^[^/]+/[^/]+/(.+)/[^/]+$')]
end

-- The suspect that runs next, if none is running.
local function next_suspect(pool)
  if call('SCARD', P .. 'suspects-live:' .. pool) > 0 then return nil end
  local suspects = P .. 'suspects:' .. pool
  for _, id in ipairs(call('ZRANGE', suspects, 0, SUSPECTS_LOOK - 1)) do
    local line = call('HGET', P .. 'job:' .. id, 'line')
    if not (line and is_paused(line)) then
      call('ZREM', suspects, id)
      if line then return microbatch(line, {id}, true) end
    else
      call('ZADD', suspects, NOW, id)    -- behind the others, so that many of them hold up nobody
    end
  end
  return nil
end

-- The next micro-batch of a lane, or nil. Lines take weighted turns: each stands one stride (1 / weight of its model)
-- behind its turn before. Light lines are passed over unless `light_too`, but one that computes goes no more than a turn
-- ahead of them. Those of paused models pass their turns: they stand beside whoever is served, so that a model which is
-- resumed does not catch up at the cost of the others.
local function next_of_lane(pool, lane, light_too)
  local lines, passing, waits, waits_at = P .. 'lines:' .. pool .. ':' .. lane, {}, nil, nil
  local function serve(line, turn)
    local ids = take_from(line)
    if #ids == 0 then
      call('ZREM', lines, line)
      return nil
    end
    for _, each in ipairs(passing) do call('ZADD', lines, turn, each) end
    call('ZINCRBY', lines, call('HGET', P .. 'strides', string.match(line, '^[^/]+/[^/]+/(.+)$')) or 1, line)
    return microbatch(line, ids, false)
  end

  local standing = call('ZRANGE', lines, 0, -1, 'WITHSCORES')
  for i = 1, #standing, 2 do
    local line, turn = standing[i], tonumber(standing[i + 1])
    if is_paused(line) then
      passing[#passing + 1] = line
    elseif light_too or not light(line) then
      local made = waits and turn - waits_at >= 1 and serve(waits, waits_at) or serve(line, turn)
      if made then return made end
    elseif not waits then
      waits, waits_at = line, turn
    end
  end
  return nil
end

-- Fills the window of a pool; what it made must now be published. The window is one micro-batch a worker for light
-- lines and one or more a slot for the others, so that a model that computes never waits for its next batch. Bulk
-- gets what interactive leaves of it, and never keeps interactive out; where interactive leaves nothing, every
-- BULK_EVERY-th micro-batch is bulk.
local function fill(pool, made)
  local workers, slots = 0, 0
  for _, each in ipairs(call('HVALS', P .. 'slots:' .. pool)) do
    workers, slots = workers + 1, slots + tonumber(each) * PER_SLOT
  end
  local window, light_window = math.max(WINDOW_MIN, slots), math.max(1, workers)
  local live, bulk = call('ZCARD', P .. 'live:' .. pool), call('SCARD', P .. 'bulk-live:' .. pool)
  local since = P .. 'since-bulk'    -- interactive micro-batches made while bulk waited
  local bulk_waits = call('EXISTS', P .. 'lines:' .. pool .. ':bulk') == 1
  while true do
    local owed = bulk_waits and bulk == 0 and tonumber(call('HGET', since, pool) or 0) >= BULK_EVERY - 1
    local next = live - bulk < window and next_suspect(pool)
      or not owed and live - bulk < window and next_of_lane(pool, 'interactive', live - bulk < light_window)
    if next then
      if lane_of(next[4]) == 'bulk' then bulk = bulk + 1    -- a suspect
      elseif bulk_waits then call('HINCRBY', since, pool, 1) end
    elseif bulk_waits and (owed or live < window) then
      next = next_of_lane(pool, 'bulk', owed or live < light_window)
      if next or owed then call('HDEL', since, pool) end
      if next then bulk = bulk + 1 end
    end
    if next then
      made[#made + 1] = next
      live = live + 1
    elseif not owed then
      return made
    end
  end
end
