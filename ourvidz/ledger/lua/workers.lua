local seen = redis.call('ZRANGEBYSCORE', key('workers'), stamp(now - tonumber(ARGV[4])), '+inf')
local found = { stamp(now) }
for _, id in ipairs(seen) do found[#found + 1] = redis.call('HGETALL', key('worker', id)) end
return found
