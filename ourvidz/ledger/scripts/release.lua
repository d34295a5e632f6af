-- Give a failed attempt back to the queue, due later: failures[code] + 1, a new fence.
-- Arguments: id, run, fence, token, code, due_in_s, call.
-- Keys: job, fence, leases, queued, stream, counters, call.
-- Returns: 1, or 0 when the claim is lost.
-- Events: a `state` item.
local id, run, fence, token, code, due_in_s, call = unpack(ARGV, 4)

local job = read_record(id)
if memoized(call) then return 1 end
if not holds_claim(job, run, fence, token) then return 0 end
redis.call('HINCRBY', key('job', id), 'f:' .. code, 1)
requeue(id, job, now + tonumber(due_in_s))
add_state_item(id, job, 'queued', job.attempt)
increment('attempts.released.' .. code)
memoize(call, 'ok')
return 1
