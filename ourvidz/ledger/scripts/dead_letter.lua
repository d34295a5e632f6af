-- Give an event up: a terminal one becomes a dead letter, a `processing` one is deleted. With a token the next event of
-- the job is leased in the same call, if it is due.
-- Arguments: event, job, deliveries (the number that the lease had), status (HTTP), reason, lease_s, token ('' leases
--   nothing).
-- Keys: event, rows, letters, due, ready, counters.
-- Returns: { event id, its hash } of the event that was leased, or false.
-- Events: none.
local event, job, deliveries, status, reason, lease_s, token = unpack(ARGV, 4)

local name = key('event', event)
local row = read_hash(name)
if row and row.state == 'pending' and row.deliveries == deliveries then
  if row.kind == 'processing' then
    settle_event(event, row)
  else
    settle_event(event, row, 'dead', status)
    redis.call('HSET', name, 'last_error', reason)
    increment('callbacks.dead')
  end
end
return continue_with(job, lease_s, token)
