-- Add to the GPU usage of today what no end of a run does: that of attempts which did not end their run.
-- Arguments: token, then a field and its amount for each.
-- Keys: gpu_usage, call.
-- Returns: 1, or 0 when the call came twice.
-- Events: none.
local token = unpack(ARGV, 4, 4)
local FIRST_FIELD = 5

if memoized(token) then return 0 end
add_gpu_usage(FIRST_FIELD, #ARGV)
memoize(token, 'ok')
return 1
