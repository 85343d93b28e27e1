package provision

import (
	"testing"

	"muster/provision/step"
)

func TestApplyTwice(t *testing.T) {
	l := newLab(t, 3)
	first := l.mustApply()
	if first.Changes == 0 {
		t.Error("the first apply reports no changes")
	}
	second := l.mustApply()
	if second.Changes != 0 {
		t.Errorf("the second apply reports %d changes: %q", second.Changes, l.events.texts(step.Changed))
	}
	if first.Status.ClusterID != second.Status.ClusterID || first.Status.ClusterID == "" {
		t.Errorf("cluster ID %q, then %q", first.Status.ClusterID, second.Status.ClusterID)
	}
}
