-- Give an event up: a terminal one becomes a dead letter, a `processing` one is deleted.
-- Arguments: event, deliveries (the number that the lease had), status (HTTP), reason.
-- Keys: event, rows, letters, due, counters.
-- Returns: 1, or 0 when the event is not pending or was leased again.
-- Events: none.
local event, deliveries, status, reason = unpack(ARGV, 4)

local name = key('event', event)
local row = read_hash(name)
if not row or row.state ~= 'pending' or row.deliveries ~= deliveries then return 0 end
if row.kind == 'processing' then
  settle_event(event, row)
else
  settle_event(event, row, 'dead', status)
  redis.call('HSET', name, 'last_error', reason)
  increment('callbacks.dead')
end
return 1
