-- Lists dead letters, the youngest first. ARGV: most entries to look at, entries to give, cursor ('' at the start), since
-- (ms), model, stage, code ('' for any). Replies {cursor or '' at the end, entries}; a cursor may come with fewer entries
-- than were asked for.
local look, most, cursor, since = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local model, stage, code = ARGV[5], ARGV[6], ARGV[7]
local from = cursor == '' and '+inf' or '(' .. cursor
local found, following = {}, ''
local entries = call('ZREVRANGEBYSCORE', P .. 'dead-letters', from, '-inf', 'WITHSCORES', 'LIMIT', 0, look)
for i = 1, #entries, 2 do
  local letter = dead_letter(entries[i])
  if letter then
    if letter[5] < since then return {'', found} end
    local of = string.match(call('HGET', P .. 'job:' .. letter[1], 'line'), '^[^/]+/[^/]+/(.+)/[^/]+$')
    if (model == '' or model == of) and (stage == '' or stage == letter[4]) and (code == '' or code == letter[6]) then
      found[#found + 1] = letter
    end
  end
  following = entries[i + 1]
  if #found == most then break end
end
local last = call('ZRANGE', P .. 'dead-letters', 0, 0, 'WITHSCORES')
if following == last[2] then following = '' end
return {following, found}
