-- Extend every lease to now + lease_s.
-- Arguments: lease_s.
-- Keys: leases, job.
-- Returns: the number of leases.
-- Events: none.
local lease_s = unpack(ARGV, 4)

local lease_until = timestamp(now + tonumber(lease_s))
local ids = redis.call('ZRANGE', key('leases'), 0, -1)
for _, id in ipairs(ids) do set_lease(id, lease_until) end
return #ids
