-- Cancels a job. ARGV: id. Replies {verdict, ended}: 'gone' (there is no record), 'cancelled' (it will never run again),
-- 'cancelling' (a worker runs it: promised for the next boundary of a stage at the latest), 'ended' (otherwise).
even_if_full()
local id = ARGV[1]
local key = P .. 'job:' .. id
local job = call('HMGET', key, 'state', 'microbatch', 'deadline')
if not job[1] then return {'gone', {}} end
if job[1] ~= 'queued' then return {job[1] == ENDS.cancel and 'cancelled' or 'ended', {}} end

local number = job[2]
local held = P .. 'microbatch:' .. (number or '')
local batch = number and call('HMGET', held, 'holder', 'members', 'stage') or {}
if tonumber(job[3]) <= NOW then
  finish(id, 'expire', nil, 'deadline-passed', batch[3])
  announce()
  return {ended[1][2] == ENDS.cancel and 'cancelled' or 'ended', ended}
end
if not batch[1] or batch[1] == '' then    -- it waits in its line, or between two stages
  finish(id, 'cancel', nil, 'cancelled-by-client', batch[3])
  announce()
  return {'cancelled', ended}
end

call('HSET', key, 'cancel', NOW)
local all = 'all'    -- then whoever runs them may stop at once
for each in string.gmatch(batch[2], '%S+') do
  local other = call('HMGET', P .. 'job:' .. each, 'state', 'microbatch', 'cancel')
  if other[1] == 'queued' and other[2] == number and not other[3] then all = 'some' end
end
call('HSET', held, 'cancels', all)
return {'cancelling', {}}
