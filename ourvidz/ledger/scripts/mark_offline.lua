-- Mark a worker as offline until its next heartbeat.
-- Arguments: id.
-- Keys: worker.
-- Returns: 1.
-- Events: none.
local id = unpack(ARGV, 4)

local name = key('worker', id)
if redis.call('EXISTS', name) == 1 then redis.call('HSET', name, 'left', 1) end
return 1
