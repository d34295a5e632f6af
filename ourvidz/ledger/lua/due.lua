-- Jobs with a row that is due, most overdue first. Of too many, a stretch that begins anywhere and goes on at
-- the front: the rows of a receiver that hangs must not stand before everybody else's for ever.
local limit = tonumber(ARGV[4])
local function read(first, many)
  local at, up_to = string.format('%.0f', first), stamp(now)
  return redis.call('ZRANGEBYSCORE', key('due'), '-inf', up_to, 'LIMIT', at, many)
end
local count = redis.call('ZCOUNT', key('due'), '-inf', stamp(now))
if count <= limit then return read(0, limit) end
local found = read(math.floor(now * 1e6) % count, limit)
for _, id in ipairs(read(0, limit - #found)) do found[#found + 1] = id end
return found
