-- Dead letters by id. ARGV: 1 or 0, whether with their inputs; then ids. Replies the entries of those that there are, each
-- with the input or ''.
local found = {}
for i = 2, #ARGV do
  local letter = dead_letter(ARGV[i])
  if letter then
    letter[8] = ARGV[1] == '1' and call('HGET', P .. 'job:' .. ARGV[i], 'input') or ''
    found[#found + 1] = letter
  end
end
return found
