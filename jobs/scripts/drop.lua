-- Drops dead letters: their inputs are gone, their ends stay readable for their retention. ARGV: ids. Replies how many
-- there were.
even_if_full()
local dropped = 0
for i = 1, #ARGV do
  if call('ZSCORE', P .. 'dead-letters', ARGV[i]) then
    drop_dead_letter(ARGV[i])
    dropped = dropped + 1
  end
end
return dropped
