package inventory

import (
	"errors"
	"time"

	"github.com/prometheus/common/model"
)

// Lifetime is how long a certificate is valid. It is written as Prometheus
// writes durations: "10y", "365d", "8760h", "1d12h"; a year has 365 days.
type Lifetime time.Duration

const (
	day  = Lifetime(24 * time.Hour)
	year = 365 * day

	// DefaultCALifetime and DefaultLeafLifetime are kubeadm's.
	DefaultCALifetime   = 10 * year
	DefaultLeafLifetime = year
)

// Duration returns l as a time.Duration.
func (l Lifetime) Duration() time.Duration { return time.Duration(l) }

// String returns the shortest notation that UnmarshalText reads back.
func (l Lifetime) String() string { return model.Duration(l).String() }

// MarshalText implements encoding.TextMarshaler.
func (l Lifetime) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (l *Lifetime) UnmarshalText(text []byte) error {
	d, err := model.ParseDuration(string(text))
	if err != nil {
		return errors.New("not a duration")
	}
	*l = Lifetime(d)
	return nil
}
