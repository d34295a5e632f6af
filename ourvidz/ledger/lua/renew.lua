local id, run, fence, lease_s = unpack(ARGV, 4)
if not holds(record(id), run, fence) then return 0 end
local until_ = stamp(now + tonumber(lease_s))
redis.call('HSET', key('job', id), 'lease_until', until_)
redis.call('ZADD', key('leases'), until_, id)
return 1
