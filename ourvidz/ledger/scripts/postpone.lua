-- Give the lease of an event back and make it due later, after a delivery that failed.
-- Arguments: event, deliveries (the number that the lease had: later leases have more), due_in_s, status (HTTP),
--   reason, token.
-- Keys: event, due, counters, call.
-- Returns: 1, or 0 when the event is not pending or was leased again.
-- Events: none.
local event, deliveries, due_in_s, status, reason, token = unpack(ARGV, 4)

local name = key('event', event)
local row = read_hash(name)
if memoized(token) then return 1 end
if not row or row.state ~= 'pending' or row.deliveries ~= deliveries then return 0 end
redis.call('HSET', name, 'due_at', timestamp(now + tonumber(due_in_s)), 'last_status', status, 'last_error', reason)
redis.call('HDEL', name, 'lease_until', 'taken_by')
schedule_job(row.job)
increment('callbacks.retried')
memoize(token, 'ok')
return 1
