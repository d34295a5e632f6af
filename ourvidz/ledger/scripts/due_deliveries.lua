-- Find jobs with an event that is due and not leased, most overdue first. Of more than `limit` any stretch that
-- wraps around: the events of a receiver that hangs must not stay in front of all others.
-- Arguments: limit.
-- Keys: due.
-- Returns: job ids.
-- Events: none.
local limit = unpack(ARGV, 4)
limit = tonumber(limit)

local function read(first, count)
  local offset = string.format('%.0f', first)
  return redis.call('ZRANGEBYSCORE', key('due'), '-inf', timestamp(now), 'LIMIT', offset, count)
end
local count = redis.call('ZCOUNT', key('due'), '-inf', timestamp(now))
if count <= limit then return read(0, limit) end
local ids = read(math.floor(now * 1e6) % count, limit)
for _, id in ipairs(read(0, limit - #ids)) do ids[#ids + 1] = id end
return ids
