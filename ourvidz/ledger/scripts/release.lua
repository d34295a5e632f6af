-- Give a failed attempt back to the queue, due later: failures[code] + 1, fence + 1.
-- Arguments: id, run, fence, code, due_in_s, token.
-- Keys: job, leases, queued, stream, counters, call.
-- Returns: 1, or 0 when the fence is lost.
-- Events: a `state` item.
local id, run, fence, code, due_in_s, token = unpack(ARGV, 4)

local job = read_record(id)
if memoized(token) then return 1 end
if not holds_claim(job, run, fence) then return 0 end
redis.call('HINCRBY', key('job', id), 'f:' .. code, 1)
requeue(id, job, now + tonumber(due_in_s))
add_state_item(id, job, 'queued', job.attempt)
increment('attempts.released.' .. code)
memoize(token, 'ok')
return 1
