package v2tree

import (
	"errors"

	"go.etcd.io/etcd/server/v3/etcdserver/api/v2error"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v2store"
)

// Counter is what is counted about writes. On disk: do not reorder.
type Counter int

// Each that can fail is followed by its failures.
const (
	SetSuccess Counter = iota
	SetFail
	DeleteSuccess
	DeleteFail
	CreateSuccess
	CreateFail
	UpdateSuccess
	UpdateFail
	CompareAndSwapSuccess
	CompareAndSwapFail
	CompareAndDeleteSuccess
	CompareAndDeleteFail
	ExpireCount
	counters
)

// count counts an operation, or its failure if there is an error.
func (w *Writer) count(operation Counter, err error) {
	var refused *v2error.Error
	if errors.As(err, &refused) {
		operation++
	}
	w.head.Counts[operation]++
}

// Stats is what the writes so far came to.
func (t *Tree) Stats() v2store.Stats {
	c := t.head.GetCounts()
	return v2store.Stats{
		SetSuccess: c[SetSuccess], SetFail: c[SetFail],
		DeleteSuccess: c[DeleteSuccess], DeleteFail: c[DeleteFail],
		CreateSuccess: c[CreateSuccess], CreateFail: c[CreateFail],
		UpdateSuccess: c[UpdateSuccess], UpdateFail: c[UpdateFail],
		CompareAndSwapSuccess: c[CompareAndSwapSuccess], CompareAndSwapFail: c[CompareAndSwapFail],
		CompareAndDeleteSuccess: c[CompareAndDeleteSuccess], CompareAndDeleteFail: c[CompareAndDeleteFail],
		ExpireCount: c[ExpireCount],
	}
}
