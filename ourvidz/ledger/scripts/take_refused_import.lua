-- Take a refused entry of a list out of those that are kept: to import it again, as the last of its list, or for good.
-- Arguments: report (JSON, as it is kept), list, entry, back ('1' puts the entry back into its list).
-- Keys: refused_imports, the list itself.
-- Returns: 1, or 0 when it is not kept (any more).
-- Events: none.
local report, list, entry, back = unpack(ARGV, 4)

if redis.call('LREM', key('refused_imports'), 1, report) == 0 then return 0 end
if back == '1' then redis.call('RPUSH', list, entry) end
return 1
