-- Store the counters of orders and fences again, where their keys hold no number of theirs.
-- Arguments: none.
-- Keys: order, fence, index:all.
-- Returns: 1.
-- Events: none.
if not read_order() then next_order() end
if not read_fence() then next_fence() end
return 1
