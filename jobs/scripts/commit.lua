-- Commits a stage, fenced by the epoch of the lease. ARGV: number, epoch, stage, next stage or '', reference
-- to the intermediates, stages so far, microseconds that each job cost, the jobs that go on (ids, blank between),
-- how the estimates of completed jobs held ("size:logarithm:0 or 1" of each, blank between; jobs.estimates.verdict),
-- then for each job that leaves here: id, event ('complete', 'fail' or 'retry'), document, error code, delay in ms.
-- Replies {1 or 0 when the lease was lost, micro-batches to publish, ended, 1 when the micro-batch goes on}.
even_if_full()

-- How fast a line moves, in the hash 'pace:{line}': jobs 'n' that ended in 't' slot-milliseconds in which more
-- waited, both fading; 'service', ms from the window to the end; 'fill', jobs a micro-batch. 'f50:{size}' and
-- 'f90:{size}' are logarithms of the factors that make an estimate of that size (jobs/estimates.py) the median, and
-- the median the 90th percentile: each moves up when more jobs than that took longer, else down (stochastic
-- approximation; Robbins and Monro, 1951).
local FADE_MS, GAP_MAX_MS, GAIN, SPREAD_GAIN = 10000, 5000, 0.2, 0.05
local SPREAD, SPREAD_MAX = math.log(2), math.log(8)    -- at the start; at most, since it is judged a whole queue late and would wind up

local function step(value, gain, share, wanted) return string.format('%.6f', value + gain * (share - wanted)) end

local function calibrate(key)
  local held = {}    -- by size: its factors, jobs, those above the median as it is now, those above what they were told
  for size, log, above90 in string.gmatch(ARGV[9], '(%d+):(%S+):(%d)') do
    if not held[size] then
      local kept = call('HMGET', key, 'f50:' .. size, 'f90:' .. size)
      held[size] = {f50 = tonumber(kept[1] or 0), f90 = tonumber(kept[2] or SPREAD), jobs = 0, above50 = 0, above90 = 0}
    end
    local each = held[size]
    each.jobs, each.above90 = each.jobs + 1, each.above90 + above90
    if tonumber(log) > each.f50 then each.above50 = each.above50 + 1 end
  end
  for size, each in pairs(held) do
    local weight = each.jobs / (each.jobs + 3)
    call('HSET', key, 'f50:' .. size, step(each.f50, GAIN * weight, each.above50 / each.jobs, 0.5),
      'f90:' .. size, math.min(SPREAD_MAX, math.max(0, step(each.f90, SPREAD_GAIN * weight, each.above90 / each.jobs, 0.1))))
  end
end

local function keep_pace(line, jobs, made)
  local key, slots = P .. 'pace:' .. line, 0
  local pace = call('HMGET', key, 'n', 't', 'last', 'busy', 'service', 'fill')
  local n, t = tonumber(pace[1] or 0), tonumber(pace[2] or 0)
  if pace[4] == '1' then
    for _, each in ipairs(call('HVALS', P .. 'slots:' .. pool_of(line))) do slots = slots + tonumber(each) end
    local gap = math.min(GAP_MAX_MS, math.max(0, NOW - pace[3]))
    local fade = math.exp(-gap / FADE_MS)
    n, t = n * fade + jobs, t * fade + gap * math.max(1, slots)
  end
  local service = NOW - made
  service = tonumber(pace[5] or service) * 0.8 + service * 0.2
  local filled = tonumber(pace[6] or jobs) * 0.8 + jobs * 0.2
  call('HSET', key, 'n', string.format('%.3f', n), 't', string.format('%.3f', t), 'last', NOW,
    'busy', call('EXISTS', P .. 'line:' .. line), 'service', string.format('%.1f', service), 'fill', string.format('%.2f', filled))
  if not pace[3] then call('SADD', P .. 'paced', line) end
  calibrate(key)
end

local number, epoch, stage, following, going_on = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[8]
local key = P .. 'microbatch:' .. number
local batch = call('HMGET', key, 'epoch', 'stage', 'line', 'holder', 'cancels', 'made')
if batch[1] ~= epoch or batch[2] ~= stage or batch[4] == '' then return {0, {}, {}, 0} end
local line = batch[3]

for i = 10, #ARGV, 5 do
  local id, event = ARGV[i], ARGV[i + 1]
  local job = event == 'retry' and call('HMGET', P .. 'job:' .. id, 'state', 'microbatch', 'cancel')
  if not job or job[3] then
    finish(id, event, ARGV[i + 2], ARGV[i + 3], stage, number)
  elseif job[1] == 'queued' and job[2] == number then
    try_again(id, line, tonumber(ARGV[i + 4]))
  end
end
if batch[5] then    -- cancellations were promised while the stage ran: this is the boundary where they take effect
  for id in string.gmatch(going_on, '%S+') do
    if call('HEXISTS', P .. 'job:' .. id, 'cancel') == 1 then finish(id, 'cancel', nil, nil, stage, number) end
  end
end

local cost = P .. 'cost:' .. string.match(line, '^[^/]+/[^/]+/(.+)$')
local before = tonumber(call('HGET', cost, stage) or ARGV[7])
call('HSET', cost, stage, math.floor(0.8 * before + 0.2 * tonumber(ARGV[7])))

local made, goes_on = {}, following ~= '' and going_on ~= ''
if goes_on then
  call('HSET', key, 'stage', following, 'published', NOW, 'again', 0, 'lease', 0, 'holder', '', 'reference', ARGV[5], 'stages', ARGV[6],
    'members', going_on)
  call('ZADD', P .. 'live:' .. pool_of(line), NOW + LOST_AFTER, number)
else
  close(number, line)
  keep_pace(line, (#ARGV - 9) / 5, tonumber(batch[6] or NOW))
  fill(pool_of(line), made)
end
announce()
return {1, made, ended, goes_on and 1 or 0}
