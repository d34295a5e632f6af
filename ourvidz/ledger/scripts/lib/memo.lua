-- Answers by call token: a call that is sent again because its reply was lost gets its first answer.

local MEMO_S = 120

-- The answer of an earlier call with this token, or false.
local function memoized(token) return redis.call('GET', key('call', token)) end

local function memoize(token, answer)
  redis.call('SET', key('call', token), answer, 'EX', MEMO_S)
  return answer
end
