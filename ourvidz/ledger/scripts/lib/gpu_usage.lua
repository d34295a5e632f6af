-- GPU usage: one hash a day at `gpu_usage:<days since 1970>`, which expires.

local DAY_S = 86400
local USAGE_S = 400 * DAY_S

-- Add the amounts of the arguments from `first` to `last`, each a field and a number, to the usage of today.
local function add_gpu_usage(first, last)
  if first > last then return end
  local name = key('gpu_usage', math.floor(now / DAY_S))
  for i = first, last, 2 do redis.pcall('HINCRBY', name, ARGV[i], ARGV[i + 1]) end
  redis.call('EXPIRE', name, USAGE_S)
end
