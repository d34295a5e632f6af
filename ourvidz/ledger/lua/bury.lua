local event, deliveries, status, why = unpack(ARGV, 4)
local name = key('event', event)
local row = hash(name)
if not row or row.state ~= 'pending' or row.deliveries ~= deliveries then return 0 end
if row.kind == 'processing' then
  settle(event, row)
else
  settle(event, row, 'dead', status)
  redis.call('HSET', name, 'last_error', why)
  count('callbacks.dead')
end
return 1
