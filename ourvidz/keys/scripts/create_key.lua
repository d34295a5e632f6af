-- Store a new key.
-- Arguments: prefix, id, hash, name, scopes, rate_class, user_id, user_prefix, lifetime_s ('' for one that does not end).
-- Keys: apikey, apikeys.
-- Returns: 1, or 0 when there is a key of this id or of this name that is not revoked.
-- Events: none.
local prefix, id, hash, name, scopes, rate_class = unpack(ARGV, 1, 6)
local user_id, user_prefix, lifetime_s = unpack(ARGV, 7)

local record = prefix .. 'apikey:' .. id
if redis.call('EXISTS', record) == 1 then
  -- The same call again, after a lost reply.
  return redis.call('HGET', record, 'hash') == hash and 1 or 0
end
for _, other in ipairs(redis.call('SMEMBERS', prefix .. 'apikeys')) do
  local fields = redis.call('HMGET', prefix .. 'apikey:' .. other, 'name', 'revoked_at')
  if fields[1] == name and not fields[2] then return 0 end
end
local now = tonumber(redis.call('TIME')[1])
redis.call('HSET', record, 'hash', hash, 'name', name, 'scopes', scopes, 'rate_class', rate_class,
  'user_id', user_id, 'user_prefix', user_prefix, 'created_at', now)
if lifetime_s ~= '' then redis.call('HSET', record, 'expires_at', now + tonumber(lifetime_s)) end
redis.call('SADD', prefix .. 'apikeys', id)
return 1
