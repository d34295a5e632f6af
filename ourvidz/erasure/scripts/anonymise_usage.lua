-- Add the GPU usage of a user to that of no user, for one day. A second time it changes nothing.
-- Arguments: prefix, day (since 1970), user, the name of no user.
-- Keys: gpu_usage.
-- Returns: the number of rows that were the user's.
-- Events: none.
local prefix, day, user, nobody = unpack(ARGV)

local name, rows = prefix .. 'gpu_usage:' .. day, 0
for _, field in ipairs(redis.call('HKEYS', name)) do
  local owner, rest = string.match(field, '^(%S+) (.+)$')
  if owner == user then
    local amount = redis.call('HGET', name, field)
    -- A deletion first: a full server refuses no script that begins with one.
    redis.call('HDEL', name, field)
    redis.pcall('HINCRBY', name, nobody .. ' ' .. rest, amount)
    rows = rows + 1
  end
end
return rows
