-- Remove ids from an index whose records are gone.
-- Arguments: index, then the ids.
-- Keys: the index, job.
-- Returns: the number of removed ids.
-- Events: none.
local index = unpack(ARGV, 4, 4)
local FIRST_ID = 5

local removed = 0
for position = FIRST_ID, #ARGV do
  local id = ARGV[position]
  if redis.call('EXISTS', key('job', id)) == 0 then removed = removed + redis.call('ZREM', key(index), id) end
end
return removed
