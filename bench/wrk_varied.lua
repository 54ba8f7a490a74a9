-- Every request has a header of its own, as behind a gateway that numbers them. Measures like wrk.lua.
dofile("wrk.lua")

local number = 0

function request()
    number = number + 1
    return wrk.format(nil, nil, { ["Host"] = wrk.headers["Host"], ["X-Request-Id"] = string.format("%032x", number) })
end
