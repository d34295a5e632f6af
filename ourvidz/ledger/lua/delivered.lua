local event, status, letter_s = unpack(ARGV, 4)
local name = key('event', event)
local row = hash(name)
if not row or row.state ~= 'pending' then return 0 end
count('callbacks.delivered')
if row.kind == 'processing' then
  settle(event, row)
else
  settle(event, row, 'delivered', status)
  redis.call('EXPIRE', name, letter_s)
end
return 1
