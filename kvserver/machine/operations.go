package machine

import "sync/atomic"

// Operations counts what was asked of the keys since the machine was opened:
// writes as they are applied, reads as they are served here.
type Operations struct {
	Puts, Deletes, Ranges, Txns atomic.Int64
}
