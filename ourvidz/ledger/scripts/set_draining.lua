-- Mark a worker as draining, or not; heartbeats do not change it.
-- Arguments: id, draining ('1' or '0').
-- Keys: worker.
-- Returns: 1, or 0 when the worker was never seen.
-- Events: none.
local id, draining = unpack(ARGV, 4)

local name = key('worker', id)
if redis.call('EXISTS', name) == 0 then return 0 end
if draining == '1' then
  redis.call('HSET', name, 'draining', 1)
else
  redis.call('HDEL', name, 'draining')
end
return 1
