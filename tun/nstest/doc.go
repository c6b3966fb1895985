// Package nstest runs the tests of a package in a network and mount namespace
// of their own, so that they can make interfaces, routes and mounts without
// leaving anything on the machine.
//
// Start at [Enter], in TestMain. The package works on Linux only and is empty
// elsewhere.
package nstest
