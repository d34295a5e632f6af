local event, deliveries, due_in_s, status, why, token = unpack(ARGV, 4)
local name = key('event', event)
local row = hash(name)
if said_before(token) then return 1 end
if not row or row.state ~= 'pending' or row.deliveries ~= deliveries then return 0 end
redis.call('HSET', name, 'due_at', stamp(now + tonumber(due_in_s)), 'last_status', status, 'last_error', why)
redis.call('HDEL', name, 'lease_until', 'taken_by')
schedule(row.job)
count('callbacks.retried')
say(token, 'ok')
return 1
