local until_ = stamp(now + tonumber(ARGV[4]))
local held = redis.call('ZRANGE', key('leases'), 0, -1)
for _, id in ipairs(held) do
  redis.call('HSET', key('job', id), 'lease_until', until_)
  redis.call('ZADD', key('leases'), until_, id)
end
return #held
