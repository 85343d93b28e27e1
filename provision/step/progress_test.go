package step

import (
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

type events []Event

func (e *events) Report(one Event) { *e = append(*e, one) }

// A transfer tells once a second how far it is, and a quick one nothing.
func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen events
		h := &Host{run: &Run{Reporter: &seen}, step: "programs"}
		h.Name = "controller-0"
		tell := h.progress("musterd")
		for mib := range int64(20) {
			tell(mib<<20, 20<<20)
			time.Sleep(250 * time.Millisecond) //nolint:forbidigo // on the clock of the bubble
		}
		quick := &counted{Reader: strings.NewReader("quick"), total: 5, tell: h.progress("quick")}
		if _, err := io.Copy(io.Discard, quick); err != nil {
			t.Fatal(err)
		}
		want := []string{"musterd: 4.0 MiB of 20 MiB, 4.0 MiB/s", "musterd: 8.0 MiB of 20 MiB, 4.0 MiB/s", "musterd: 12 MiB of 20 MiB, 4.0 MiB/s", "musterd: 16 MiB of 20 MiB, 4.0 MiB/s"}
		var got []string
		for _, e := range seen {
			if e.Kind != Progress || e.Step != "programs" || e.Host != "controller-0" {
				t.Errorf("event %+v", e)
			}
			got = append(got, e.Text)
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("%q, want %q", got, want)
		}
	})
}
