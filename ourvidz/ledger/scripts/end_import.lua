-- Note that an entry was imported, or put it back behind the others of its list.
-- Arguments: list, entry, back ('1' puts it back).
-- Keys: the list itself, importing, counters.
-- Returns: 1, or 0 when another importer was first.
-- Events: none.
local list, entry, back = unpack(ARGV, 4)

if redis.call('LREM', key('importing', list), 1, entry) == 0 then return 0 end
if back == '1' then
  redis.call('RPUSH', list, entry)
else
  increment('imports.accepted')
end
return 1
