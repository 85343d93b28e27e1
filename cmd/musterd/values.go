package main

import (
	"errors"
	"flag"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/pkg/v3/featuregate"
	"go.etcd.io/etcd/server/v3/features"
	"go.uber.org/zap"
)

// The kinds of values that flags have. Each reads what etcd's flag of that
// kind reads, and its errors say what to write instead.

type text struct{ to *string }

func (v text) String() string         { return *v.to }
func (v text) Set(given string) error { *v.to = given; return nil }

type boolean struct{ to *bool }

func (v boolean) String() string   { return strconv.FormatBool(*v.to) }
func (v boolean) IsBoolFlag() bool { return true }
func (v boolean) Set(given string) error {
	parsed, err := strconv.ParseBool(given)
	if err != nil {
		return errors.New("write true or false")
	}
	*v.to = parsed
	return nil
}

type integer interface {
	~int | ~int64 | ~uint | ~uint32 | ~uint64
}

// number is a whole number that is not negative.
type number[T integer] struct{ to *T }

func (v number[T]) String() string { return fmt.Sprint(*v.to) }
func (v number[T]) Set(given string) error {
	parsed, err := strconv.ParseUint(given, 0, 64)
	if err != nil || T(parsed) < 0 || uint64(T(parsed)) != parsed {
		return fmt.Errorf("write a whole number, 0 to %d", largest[T]())
	}
	*v.to = T(parsed)
	return nil
}

// signed may be negative.
type signed struct{ to *int64 }

func (v signed) String() string { return strconv.FormatInt(*v.to, 10) }
func (v signed) Set(given string) error {
	parsed, err := strconv.ParseInt(given, 0, 64)
	if err != nil {
		return errors.New("write a whole number")
	}
	*v.to = parsed
	return nil
}

func largest[T integer]() uint64 {
	all := ^T(0)
	if all > 0 {
		return uint64(all)
	}
	return 1<<63 - 1
}

// span is a duration with its unit, such as 10s.
type span struct{ to *time.Duration }

func (v span) String() string { return v.to.String() }
func (v span) Set(given string) error {
	parsed, err := time.ParseDuration(given)
	if err != nil {
		return errors.New("write a duration with its unit, such as 300ms, 5s or 10m")
	}
	*v.to = parsed
	return nil
}

// count is a duration written as a whole number of units.
type count struct {
	to   *time.Duration
	unit time.Duration
	name string // of the unit, in the plural
}

func millis(to *time.Duration) count  { return count{to, time.Millisecond, "milliseconds"} }
func seconds(to *time.Duration) count { return count{to, time.Second, "seconds"} }

func (v count) String() string { return strconv.FormatInt(int64(*v.to/v.unit), 10) }
func (v count) Set(given string) error {
	parsed, err := strconv.ParseUint(given, 0, 31)
	if err != nil {
		return fmt.Errorf("write whole %s", v.name)
	}
	*v.to = time.Duration(parsed) * v.unit
	return nil
}

// urls are sorted, and each is there once; nothing given leaves them as they
// are. Both are etcd's ways.
type urls struct{ to *[]string }

func (v urls) String() string { return strings.Join(*v.to, ",") }
func (v urls) Set(given string) error {
	if given == "" {
		return nil
	}
	parsed, err := types.NewURLs(strings.Split(given, ","))
	if err != nil {
		return err
	}
	*v.to = slices.Compact(parsed.StringSlice())
	return nil
}

// words are separated by commas.
type words struct {
	to *[]string
	// set sorts them and leaves each once.
	set bool
}

func (v words) String() string { return strings.Join(*v.to, ",") }
func (v words) Set(given string) error {
	*v.to = nil
	if given == "" {
		return nil
	}
	*v.to = strings.Split(given, ",")
	if v.set {
		slices.Sort(*v.to)
		*v.to = slices.Compact(*v.to)
	}
	return nil
}

type choice struct {
	to *string
	of []string
}

func (v choice) String() string { return *v.to }
func (v choice) Set(given string) error {
	if !slices.Contains(v.of, given) {
		return fmt.Errorf("write %s", strings.Join(v.of, " or "))
	}
	*v.to = given
	return nil
}

// gates are etcd's feature gates. Those that to names are settings here; ignore
// is told of the others.
type gates struct {
	to     map[featuregate.Feature]*bool
	ignore func(name string)
}

func (v gates) String() string { return "" }
func (v gates) Set(given string) error {
	gate := featuregate.New("musterd", zap.NewNop())
	if err := gate.Add(features.DefaultEtcdServerFeatureGates); err != nil {
		return err
	}
	if err := gate.Set(given); err != nil {
		return err
	}
	if gate.Enabled(features.LeaseCheckpointPersist) && !gate.Enabled(features.LeaseCheckpoint) {
		return errors.New("enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint")
	}
	for _, pair := range strings.Split(given, ",") {
		name, _, _ := strings.Cut(strings.TrimSpace(pair), "=")
		to, known := v.to[featuregate.Feature(name)]
		switch {
		case known:
			*to = gate.Enabled(featuregate.Feature(name))
		case name != "":
			v.ignore(name)
		}
	}
	return nil
}

// watched is a value with something to do once it is given.
type watched struct {
	flag.Value
	then func(given string) error
}

func (v watched) IsBoolFlag() bool {
	b, ok := v.Value.(interface{ IsBoolFlag() bool })
	return ok && b.IsBoolFlag()
}

func (v watched) Set(given string) error {
	if err := v.Value.Set(given); err != nil {
		return err
	}
	return v.then(given)
}

// nonzero is a count of which 0 means the default.
type nonzero struct{ count }

func (v nonzero) Set(given string) error {
	before := *v.to
	err := v.count.Set(given)
	if *v.to == 0 {
		*v.to = before
	}
	return err
}

// unread takes anything. It may stand without a value, as in etcd.
type unread struct{}

func (unread) String() string   { return "" }
func (unread) IsBoolFlag() bool { return true }
func (unread) Set(string) error { return nil }

// metricsLevel is basic, or extensive for true.
type metricsLevel struct{ to *bool }

func (v metricsLevel) String() string {
	if *v.to {
		return "extensive"
	}
	return "basic"
}

func (v metricsLevel) Set(given string) error {
	var level string
	if err := (choice{&level, []string{"basic", "extensive"}}).Set(given); err != nil {
		return err
	}
	*v.to = level == "extensive"
	return nil
}

// lower is a choice in small or capital letters.
type lower struct{ choice }

func (v lower) Set(given string) error { return v.choice.Set(strings.ToLower(given)) }

// debugLevel is whether everything is logged.
type debugLevel struct{ level *string }

func (v debugLevel) String() string   { return strconv.FormatBool(*v.level == "debug") }
func (v debugLevel) IsBoolFlag() bool { return true }
func (v debugLevel) Set(given string) error {
	var on bool
	if err := (boolean{&on}).Set(given); err != nil {
		return err
	}
	if on {
		*v.level = "debug"
	}
	return nil
}
