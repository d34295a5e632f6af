-- Take the next entry of a list into which callers push jobs: move it to the list of the entries that are being
-- imported, or get the one that an importer left there when it died.
-- Arguments: list.
-- Keys: the list itself, importing.
-- Returns: the entry, or false when there is none.
-- Events: none.
local list = unpack(ARGV, 4)

local importing = key('importing', list)
local entry = redis.call('LINDEX', importing, 0)
if entry then return entry end
if redis.call('TYPE', list).ok ~= 'list' then return false end
return redis.call('LMOVE', list, importing, 'LEFT', 'RIGHT')
